"""The cost of per-sample gradients and of a whole CAPO update, against plain GRPO's.

    OMP_NUM_THREADS=1 python benchmarks/step.py [--sizes small medium] [--repeats 5]
    OMP_NUM_THREADS=1 python benchmarks/step.py --axes

On one rank, with random weights and random responses. Three tables, each as ratios within one run
(medians of CPU seconds on CPU, of wall seconds on a GPU, the variants taking turns):

- the backward pass of one micro-batch: ordinary; per-sample gradients; one backward per sample;
  torch.func.vmap(grad); Opacus (if it is installed: pip install --no-deps opacus opt_einsum);
- a whole update, from scored responses to the optimizer step: GRPO on a plain DeepSpeed engine
  against `Learner.update` with `mean`, with the exact Gram matrix, each sketch and each store;
- where the seconds of each update go, and the peak of memory it allocates.

With --axes one table instead: whole updates of the size `axes`, where the number of samples, the
LoRA rank and the width of the model are other ones in turn.

Writes benchmarks/results/step.json (step_axes.json). The size 1.5b has the shapes of Qwen2.5-1.5B
with 512 samples of 512 tokens and LoRA rank 64, and wants a GPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from meter import keep
from step_backward import backward_passes
from step_shapes import SIZES, Size, in_turns, make_model, random_responses, settings

from capo_ds.distributed import comm
from capo_ds.distributed.engine import CapoEngine
from capo_ds.learner import Batch, Learner
from capo_ds.models import load_policy
from capo_ds.objective import token_weights
from capo_ds.telemetry.metrics import PhaseTimer

RESULTS = Path(__file__).resolve().parent / "results" / "step.json"
PLAIN = "GRPO, plain DeepSpeed"
VARIANTS = {
    "GRPO, mean": {"aggregator": "mean", "measure_conflict": False},
    "GRPO, conflict measured": {"aggregator": "mean"},
    "CAPO, exact": {},
    "CAPO, exact, bf16 store": {"gradients": {"dtype": "bfloat16"}},
    "CAPO, exact, host store": {"gradients": {"store": "host"}},
    "CAPO, rademacher": {"gradients": {"sketch": "rademacher"}},
    "CAPO, sparse": {"gradients": {"sketch": "sparse"}},
    "CAPO, outer": {"gradients": {"sketch": "outer"}},
    "CAPO, sparse, recompute": {"gradients": {"sketch": "sparse", "store": "recompute"}},
    "CAPO, outer, recompute": {"gradients": {"sketch": "outer", "store": "recompute"}},
}
AXES = {"samples": [16, 64, 256, 512], "lora_rank": [8, 32, 128], "width": [64, 128, 256, 512]}
ON_AXES = ("GRPO, mean", "GRPO, conflict measured", "CAPO, exact", "CAPO, sparse")


def peak_memory(run: Callable[[], object]) -> int:
    """Bytes that PyTorch allocates at the most while it runs, beyond what stood before."""
    if comm.device().type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(profile_memory=True) as profiler:
        run()
    held = peak = 0
    recorded: Any = profiler.profiler  # its public events know no order of single allocations
    for event in recorded.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


# ---------------------------------------------------------------- whole updates


def updates(
    size: Size, model: Path, repeats: int, names: Sequence[str] = tuple(VARIANTS)
) -> tuple[dict, dict, dict]:
    """Median seconds, seconds by phase, and the updates themselves, of each variant."""
    rollout = random_responses(size)
    advantages = torch.randn(len(rollout), generator=torch.Generator().manual_seed(2))
    numbers = torch.arange(len(rollout), device=comm.device())
    runs, timers = {}, {}
    variants = {name: VARIANTS[name] for name in names}
    for name, variant in {PLAIN: VARIANTS["GRPO, mean"], **variants}.items():
        config = settings(size, model, variant)
        policy = load_policy(config.model, seed=0).to(comm.device())
        engine = CapoEngine(policy, config, optimizer_steps=100, monitor_dir=model)
        timers[name] = PhaseTimer()
        store = config.gradients.store
        kind = "device" if store == "auto" else store
        learner = Learner(config, engine, kind, timers[name])
        batch = learner.prepare(rollout, advantages.to(comm.device()), numbers)
        if name == PLAIN:
            runs[name] = lambda learner=learner, batch=batch: plain_update(learner, batch)
        else:
            runs[name] = lambda learner=learner, batch=batch: learner.update(batch, number=0)
    seconds = in_turns(runs, repeats)
    phases = {
        name: {phase: total / (repeats + 1) for phase, total in timer.take().items()}
        for name, timer in timers.items()
    }
    return seconds, phases, runs


def plain_update(learner: Learner, batch: Batch) -> None:
    """GRPO as one writes it for DeepSpeed: a backward pass of the engine a micro-batch, a step."""
    engine, config = learner.engine._engine, learner.config
    lengths = batch.lengths.float()
    weights = token_weights(
        lengths, "sequence_mean", len(batch), float(lengths.sum()), config.rollout.max_new_tokens
    )
    engine.train()
    parts = list(learner.passes.micro_batches(batch.weighted(weights)))
    for number, (_, part) in enumerate(parts):
        engine.set_gradient_accumulation_boundary(number == len(parts) - 1)
        values = learner.passes.objectives(part).values
        engine.backward(-values.sum() / len(batch))
        engine.step()


def table(title: str, name: str, seconds: dict[str, float], peaks: dict[str, int]) -> str:
    first = next(iter(seconds))
    lines = [f"| {title}, {name} | seconds | ratio |", "|---|---|---|"]
    if peaks:
        lines = [
            f"| {title}, {name} | seconds | ratio | peak, MiB | ratio |",
            "|---|---|---|---|---|",
        ]
    for row, spent in seconds.items():
        line = f"| {row} | {spent:.3f} | {spent / seconds[first]:.2f} |"
        if peaks:
            line += f" {peaks[row] / 2**20:.1f} | {peaks[row] / peaks[first]:.2f} |"
        lines.append(line)
    return "\n".join(lines)


def phase_table(name: str, phases: dict[str, dict[str, float]]) -> str:
    columns = sorted({phase for row in phases.values() for phase in row})
    lines = [f"| milliseconds by phase, {name} | " + " | ".join(c[5:] for c in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for row, times in phases.items():
        if times:
            cells = (f"{1000 * times.get(column, 0):.0f}" for column in columns)
            lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def axes(folder: Path, repeats: int) -> dict[str, dict[str, float]]:
    """CPU seconds of an update by variant, for each value of each axis."""
    found = {}
    for axis, values in AXES.items():
        for value in values:
            size = replace(SIZES["axes"], **{axis: value})
            size = replace(size, mlp_width=3 * size.width)
            model = make_model(size, folder / f"{axis}{value}")
            found[f"{axis} {value}"] = updates(size, model, repeats, ON_AXES)[0]
    return found


def axes_table(found: dict[str, dict[str, float]]) -> str:
    lines = [f"| ratio to {PLAIN} | its seconds | " + " | ".join(ON_AXES) + " |"]
    lines.append("|---" * (2 + len(ON_AXES)) + "|")
    for place, seconds in found.items():
        ratios = " | ".join(f"{seconds[name] / seconds[PLAIN]:.2f}" for name in ON_AXES)
        lines.append(f"| {place} | {seconds[PLAIN]:.2f} | {ratios} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["small", "medium"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--axes", action="store_true", help="one table over N, rank and width")
    args = parser.parse_args()
    comm.init()
    if args.axes:
        with tempfile.TemporaryDirectory() as folder:
            found = axes(Path(folder), args.repeats)
        print(axes_table(found))
        RESULTS.with_stem("step_axes").write_text(json.dumps(found, indent=2) + "\n")
        comm.finish()
        return
    device = comm.device()
    results: dict = {
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
    }
    with tempfile.TemporaryDirectory() as folder:
        for name in args.sizes:
            size = SIZES[name]
            model = make_model(size, Path(folder) / name)
            passes = backward_passes(size, model, args.repeats)
            print(table("backward pass", name, passes, {}), end="\n\n", flush=True)
            whole, phases, runs = updates(size, model, args.repeats)
            peaks = {name: peak_memory(run) for name, run in runs.items()}
            print(table("update", name, whole, peaks), end="\n\n", flush=True)
            print(phase_table(name, phases), end="\n\n", flush=True)
            results[name] = {
                "size": asdict(size),
                "backward": passes,
                "update": whole,
                "phases": phases,
                "peak_bytes": peaks,
            }
    keep(results, RESULTS)
    comm.finish()


if __name__ == "__main__":
    main()
