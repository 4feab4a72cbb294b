"""The cost of per-sample gradients and of a whole CAPO update, against plain GRPO's.

    OMP_NUM_THREADS=1 python benchmarks/step.py [--sizes small medium] [--repeats 5]

On one rank, with random weights and random responses. Two tables, each as ratios within one run
(medians of CPU seconds on CPU, of wall seconds on a GPU, the variants taking turns):

- the backward pass of one micro-batch: ordinary; per-sample gradients; one backward per sample;
- a whole update (`Learner.update`, from scored responses to the optimizer step): GRPO through a
  plain backward pass against CAPO with the exact Gram matrix, sketches, and the recompute store.

Writes benchmarks/results/step.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from capo_ds.config import Config, parse_config
from capo_ds.distributed import comm
from capo_ds.distributed.engine import CapoEngine
from capo_ds.gradients.per_sample import PerSampleGradients
from capo_ds.gradients.store import GradientStore
from capo_ds.learner import Learner
from capo_ds.models import load_policy, token_log_probs
from capo_ds.rollout.base import Rollout
from capo_ds.telemetry.metrics import Means, PhaseTimer

RESULTS = Path(__file__).resolve().parent / "results" / "step.json"
# hidden width, layers, vocabulary, LoRA rank, samples, tokens of prompt and of response
SIZES = {
    "small": (256, 4, 2048, 16, 32, 32, 64),
    "medium": (512, 6, 8192, 32, 16, 64, 128),
}
MICRO_BATCH = 8
VARIANTS = {
    "GRPO, plain backward": {"aggregator": "mean", "measure_conflict": False},
    "GRPO, conflict measured": {"aggregator": "mean"},
    "CAPO, exact": {"aggregator": "capo"},
    "CAPO, sparse sketch": {"aggregator": "capo", "gradients": {"sketch": "sparse"}},
    "CAPO, outer sketch": {"aggregator": "capo", "gradients": {"sketch": "outer"}},
    "CAPO, sparse, recompute": {
        "aggregator": "capo",
        "gradients": {"sketch": "sparse", "store": "recompute"},
    },
}


def make_model(size: str, folder: Path) -> Path:
    width, layers, vocabulary, *_ = SIZES[size]
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            num_key_value_heads=width // 64,
        )
    )
    model.save_pretrained(folder / size)
    return folder / size


def settings(size: str, model: Path, variant: dict) -> Config:
    *_, rank, samples, prompt, response = SIZES[size]
    return parse_config(
        {
            "model": {"path": str(model), "lora_rank": rank, "lora_alpha": 2 * rank},
            "rollout": {
                "prompts_per_step": samples // 8,
                "max_prompt_tokens": prompt,
                "max_new_tokens": response,
            },
            "objective": {"kl_weight": 0.0},
            "deepspeed": "ds_configs/zero0.json",
            "train": {"micro_batch_size": MICRO_BATCH, "output_dir": str(model)},
        }
        | variant
    )


def random_responses(size: str) -> Rollout:
    _, _, vocabulary, _, samples, prompt, response = SIZES[size]
    generator = torch.Generator().manual_seed(1)
    rollout = Rollout(
        prompt_ids=torch.randint(3, vocabulary, (samples, prompt), generator=generator),
        prompt_mask=torch.ones(samples, prompt, dtype=torch.bool),
        completion_ids=torch.randint(3, vocabulary, (samples, response), generator=generator),
        completion_mask=torch.ones(samples, response, dtype=torch.bool),
        log_probs=torch.zeros(samples, response),
        entropy=torch.zeros(samples, response),
        truncated=torch.zeros(samples, dtype=torch.bool),
    )
    return Rollout(**{name: value.to(comm.device()) for name, value in vars(rollout).items()})


def clock() -> float:
    if comm.device().type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def in_turns(variants: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each variant, after one uncounted turn."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(repeats + 1):
        for name, run in variants.items():
            start = clock()
            run()
            if turn:
                seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def backward_passes(size: str, model: Path, repeats: int) -> dict[str, float]:
    policy = load_policy(settings(size, model, {}).model, seed=0).to(comm.device()).train()
    batch = random_responses(size).take(range(MICRO_BATCH))
    per_sample = PerSampleGradients(policy)
    store = GradientStore(per_sample.parameters, MICRO_BATCH)

    def objectives(part: Rollout = batch) -> torch.Tensor:
        arguments = part.input_ids(), part.attention_mask(), part.completion_mask
        return token_log_probs(policy, *arguments, temperature=1.0).sum(1)

    def one_by_one() -> None:
        for row in range(MICRO_BATCH):
            value = objectives(batch.take([row])).sum()
            torch.autograd.grad(value, per_sample.parameters)

    variants = {
        "ordinary": lambda: torch.autograd.grad(objectives().sum(), per_sample.parameters),
        "per-sample gradients": lambda: per_sample.backward(objectives, store, first=0),
        "one backward per sample": one_by_one,
    }
    return in_turns(variants, repeats)


def updates(size: str, model: Path, repeats: int) -> dict[str, float]:
    rollout = random_responses(size)
    advantages = torch.randn(len(rollout), generator=torch.Generator().manual_seed(2))
    variants = {}
    for name, variant in VARIANTS.items():
        config = settings(size, model, variant)
        policy = load_policy(config.model, seed=0).to(comm.device())
        engine = CapoEngine(policy, config, optimizer_steps=100, monitor_dir=model)
        learner = Learner(config, engine, Means(), PhaseTimer())
        batch = learner.prepare(rollout, advantages.to(comm.device()))
        variants[name] = lambda learner=learner, batch=batch: learner.update(batch, number=0)
    return in_turns(variants, repeats)


def table(title: str, size: str, seconds: dict[str, float]) -> str:
    first = next(iter(seconds.values()))
    lines = [f"| {title}, {size} | seconds | ratio |", "|---|---|---|"]
    lines += [f"| {name} | {spent:.3f} | {spent / first:.2f} |" for name, spent in seconds.items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    comm.init()
    results: dict = {"machine": platform.machine(), "device": str(comm.device()), "sizes": SIZES}
    results["threads"] = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        for size in args.sizes:
            model = make_model(size, Path(folder))
            passes = backward_passes(size, model, args.repeats)
            print(table("backward pass", size, passes), end="\n\n", flush=True)
            whole = updates(size, model, args.repeats)
            print(table("update", size, whole), end="\n\n", flush=True)
            results[size] = {"backward": passes, "update": whole}
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    comm.finish()


if __name__ == "__main__":
    main()
