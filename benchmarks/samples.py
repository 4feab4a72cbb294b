"""The cost of an update against N, with the quickstart's model: CPU seconds, as ratios in one run.

    OMP_NUM_THREADS=1 python benchmarks/samples.py --samples 64 256 512 [--repeats 3]
    OMP_NUM_THREADS=1 deepspeed --num_accelerators 2 benchmarks/samples.py
    OMP_NUM_THREADS=1 python benchmarks/samples.py --samples 64 256 --compile

Random responses of uneven lengths, 8 to a prompt. First the updates (forward and backward passes,
Gram matrix, program, reconstruction, optimizer step), against `mean` without per-sample gradients;
then what is computed before them, the reference's log-probabilities, with each prompt read once for
its responses, against a pass over whole rows; then `mean` by ways to share rows out to passes.
With --compile instead: `mean` and CAPO as they are and with `model.compile`, and the CPU seconds of
compiling (with TORCHINDUCTOR_FORCE_DISABLE_CACHES=1 nothing is kept from earlier runs). Medians, in
turns.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from capo_ds.config import parse_config
from capo_ds.distributed import comm
from capo_ds.distributed.engine import CapoEngine
from capo_ds.learner import Learner, Update
from capo_ds.learning.batch import Batch
from capo_ds.models import load_policy
from capo_ds.rollout.rollout import Rollout
from capo_ds.shared_prompts import READS_ONCE
from capo_ds.telemetry.metrics import Measures, PhaseTimer

GROUP, PROMPT, RESPONSE, WORDS = 8, 56, 40, 90
MEAN = {"aggregator": "mean", "measure_conflict": False}
UPDATES = {
    "`mean`": MEAN,
    "`mean`, conflict measured": {"aggregator": "mean"},
    "CAPO, exact": {},
    "CAPO, `sparse`": {"gradients": {"sketch": "sparse"}},
}
PASSES = {
    "32 rows": MEAN | {"train": {"micro_batch_size": 32}},
    "1024 tokens": MEAN | {"train": {"micro_batch_tokens": 1024}},
    "2048 tokens": MEAN | {"train": {"micro_batch_tokens": 2048}},
}
COMPILED = {
    name: changes | model
    for name, changes, model in (
        ("`mean`", MEAN, {}),
        ("`mean`, compiled", MEAN, {"model": {"compile": True}}),
        ("CAPO, exact", {}, {}),
        ("CAPO, exact, compiled", {}, {"model": {"compile": True}}),
    )
}


def responses(samples: int) -> tuple[Rollout, Tensor, Tensor]:
    """This rank's responses, their advantages and numbers."""
    generator = torch.Generator().manual_seed(0)

    def draw(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    prompts = samples // GROUP
    prompt_mask = torch.arange(PROMPT) >= PROMPT - draw(30, PROMPT + 1, prompts)[:, None]
    lengths = draw(8, RESPONSE + 1, samples)
    mask = torch.arange(RESPONSE) < lengths[:, None]
    rollout = Rollout(
        prompt_ids=(draw(3, WORDS, prompts, PROMPT) * prompt_mask).repeat_interleave(GROUP, 0),
        prompt_mask=prompt_mask.repeat_interleave(GROUP, 0),
        completion_ids=draw(3, WORDS, samples, RESPONSE) * mask,
        completion_mask=mask,
        log_probs=torch.zeros(samples, RESPONSE),
        entropy=torch.zeros(samples, RESPONSE),
        truncated=lengths == RESPONSE,
    )
    advantages = torch.randn(samples, generator=generator)
    mine = torch.arange(samples).view(-1, GROUP)[comm.rank() :: comm.world_size()].flatten()
    return rollout.take(mine), advantages[mine], mine


def learner(samples: int, variant: dict, folder: Path) -> Learner:
    model = {"path": "builtin:tiny", "lora_rank": 32, "lora_alpha": 64} | variant.get("model", {})
    settings = {
        "rollout": {"prompts_per_step": samples // GROUP, "group_size": GROUP},
        "deepspeed": "ds_configs/zero2.json",
    }
    train = {"micro_batch_tokens": 1024} | variant.get("train", {}) | {"output_dir": str(folder)}
    gradients = {"store": "device"} | variant.get("gradients", {})
    if "micro_batch_size" in train:
        train["micro_batch_tokens"] = None
    config = parse_config(
        settings | variant | {"model": model, "gradients": gradients, "train": train}
    )
    policy = load_policy(config.model, seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in policy.parameters():
        if parameter.requires_grad:  # B = 0 would leave the gradients of A at 0
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    return Learner(config, CapoEngine(policy, config, 100, folder), "device", PhaseTimer())


def in_turns(variants: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median CPU seconds of each, after one uncounted turn."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(repeats + 1):
        for name, run in variants.items():
            start = time.process_time()
            run()
            if turn:
                seconds[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def padding(update: Update) -> float:
    measures = Measures()
    for measured in update.measures:
        measures.add(measured)
    return Measures.merge([measures.take()])["loss/padding"]


def compiled(samples: int, repeats: int, folder: Path) -> list[tuple[str, float, float, str]]:
    """Rows of the table; what compiling took is in the last column."""
    learners = {name: learner(samples, changes, folder) for name, changes in COMPILED.items()}
    batch = learners["`mean`"].prepare(*responses(samples))
    runs = {name: _update(one, batch) for name, one in learners.items()}
    first = {}
    for name, run in runs.items():
        start = time.process_time()
        run()
        first[name] = time.process_time() - start
    seconds = in_turns(runs, repeats)
    return [
        (name, spent, ratio, f"{first[name] - spent:.0f} s" if COMPILED[name].get("model") else "")
        for name, spent, ratio, _ in _rows(seconds, {})
    ]


def measure(samples: int, repeats: int, folder: Path) -> list[tuple[str, float, float, str]]:
    """Rows of the table: what, CPU seconds, ratio to the first of its kind, padding."""
    rollout, advantages, numbers = responses(samples)
    rows, prepared = [], None
    for variants in (UPDATES, PASSES):
        learners = {name: learner(samples, changes, folder) for name, changes in variants.items()}
        prepared = next(iter(learners.values()))
        batch = prepared.prepare(rollout, advantages, numbers)
        shares = {name: padding(one.update(batch, 0)) for name, one in learners.items()}
        runs = {name: _update(one, batch) for name, one in learners.items()}
        rows += _rows(in_turns(runs, repeats), shares)
    policy, passes = prepared.engine.module, prepared.passes

    def read(once: bool) -> Callable[[], object]:
        def run() -> None:
            setattr(policy, READS_ONCE, once)
            passes.fixed_log_probs(rollout)

        return run

    readings = {"log-probabilities, whole rows": read(False), "prompts read once": read(True)}
    return rows + _rows(in_turns(readings, repeats), {})


def _update(one: Learner, batch: Batch) -> Callable[[], object]:
    return lambda: one.update(batch, number=0)


def _rows(
    seconds: dict[str, float], shares: dict[str, float]
) -> list[tuple[str, float, float, str]]:
    first = next(iter(seconds.values()))
    return [
        (name, spent, spent / first, f"{shares[name]:.1%}" if name in shares else "")
        for name, spent in seconds.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", nargs="+", type=int, default=[64, 256, 512])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="what torch.compile gains")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    comm.init()
    for samples in args.samples:
        with tempfile.TemporaryDirectory() as folder:
            table = compiled if args.compile else measure
            rows = table(samples, args.repeats, Path(folder))
        if comm.is_main():
            last = "compiling" if args.compile else "padding"
            print(f"| N = {samples}, {comm.world_size()} ranks | CPU s | ratio | {last} |")
            print("|---|---|---|---|")
            for name, spent, ratio, share in rows:
                print(f"| {name} | {spent:.2f} | {ratio:.2f} | {share} |", flush=True)
    comm.finish()


if __name__ == "__main__":
    main()
