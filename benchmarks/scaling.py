"""How an update's work on the samples grows with their number N: time and memory by phase.

    OMP_NUM_THREADS=1 torchrun --nproc_per_node 1 benchmarks/scaling.py
    OMP_NUM_THREADS=1 torchrun --nproc_per_node 2 benchmarks/scaling.py [--samples 512 1024]

Random gradients of LoRA factors, 8 samples to a prompt, shared out over the ranks: the store is
written, the exact Gram matrix formed and reduced, the program solved on rank 0 with all measures of
a step (held-out halves too), the answer handed to the ranks, and each rank's part rebuilt. Forward
and backward passes are not in it: they are shared out and do not grow with N on a rank.

Of each phase the wall seconds (the slowest rank's), the CPU seconds of rank 0, the bytes sent by
the busiest rank and the memory by which each phase's peak is above what the process held before the
update (Linux; the largest of the ranks other than 0, and rank 0's). Writes
benchmarks/results/scaling.json.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from capo_ds.config import parse_config
from capo_ds.configured import make_solver
from capo_ds.distributed import comm
from capo_ds.distributed.gram import gram_matrices
from capo_ds.gradients.store import GradientStore
from capo_ds.learning.solve import Roster, solve

RESULTS = Path(__file__).resolve().parent / "results" / "scaling.json"
SHAPES = [(64, 256), (256, 64)]  # of the factors: 32,768 parameters
SAMPLES = (512, 1024, 2048, 4096)
GROUP, TOKENS, AT_A_TIME = 8, 4, 64
PHASES = ("collect", "gram", "solve", "rebuild")


class Phases:
    """Seconds, bytes and peak memory of one phase after another, on this rank."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, float]] = {}
        self.before = memory("VmRSS")

    def measure(self, name: str, call: Callable[[], Any]) -> Any:
        comm.max_over_ranks(0)  # all start together
        comm.take_bytes_sent()
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        wall, cpu = time.perf_counter(), time.process_time()
        result = call()
        comm.max_over_ranks(0)
        self.rows[name] = {
            "wall": time.perf_counter() - wall,
            "cpu": time.process_time() - cpu,
            "sent": sum(comm.take_bytes_sent().values()),
            "peak": memory("VmHWM") - self.before,
        }
        return result


def memory(key: str) -> float:
    """Bytes of this process by /proc: VmRSS now, VmHWM at most since the last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def update(samples: int) -> dict:
    """One update; of each phase its measures over the ranks (on all ranks)."""
    gc.collect()
    groups = torch.arange(samples).view(-1, GROUP)[comm.rank() :: comm.world_size()]
    numbers = groups.flatten()
    config = parse_config({"rollout": {"group_size": GROUP, "prompts_per_step": samples // GROUP}})
    solver = make_solver(config)
    phases = Phases()
    store = phases.measure("collect", lambda: written(numbers))
    signs = torch.randn(samples, generator=torch.Generator().manual_seed(1))[numbers]
    shares = comm.gather((signs.numpy(), numbers.numpy()))
    advantages, order = map(np.concatenate, zip(*shares, strict=True))
    roster = Roster([len(share) for share, _ in shares], advantages, order)
    grams = phases.measure(
        "gram", lambda: gram_matrices(store.matrices(), roster.counts, [0] * len(SHAPES))
    )
    answer = partial(solve, solver, config, cast(np.ndarray, grams), roster, samples, 0, ())
    solved = phases.measure("solve", lambda: comm.on_main("solve", answer))
    weights = torch.tensor(solved.coefficients[0, roster.mine], dtype=torch.float32)
    phases.measure("rebuild", lambda: store.combine(weights))
    return {name: over_ranks(phases.rows[name]) for name in PHASES}


def written(numbers: torch.Tensor) -> GradientStore:
    """This rank's gradients: noise with a mode shared by the samples of a prompt."""
    store = GradientStore(SHAPES, len(numbers), comm.device())
    random = torch.Generator().manual_seed(comm.rank())
    for first in range(0, len(numbers), AT_A_TIME):
        count = min(AT_A_TIME, len(numbers) - first)
        for index, (out, into) in enumerate(SHAPES):
            inputs = torch.randn(count, TOKENS, into, generator=random) + 0.3
            store.write(
                index, first, torch.randn(count, TOKENS, out, generator=random) + 0.1, inputs
            )
    return store


def over_ranks(row: dict[str, float]) -> dict[str, float]:
    rows = comm.gather(row)
    others = [other["peak"] for other in rows[1:]]
    return {
        "wall": max(other["wall"] for other in rows),
        "cpu_main": rows[0]["cpu"],
        "sent_most": max(other["sent"] for other in rows),
        "peak_main": rows[0]["peak"],
        "peak_others": max(others, default=0.0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--samples", type=int, nargs="+", default=SAMPLES)
    arguments = parser.parse_args()
    comm.init()
    update(64)  # what is loaded at the first use is no part of the growth
    rows = {count: update(count) for count in arguments.samples}
    if comm.is_main():
        tell(rows)
        known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        known[f"{comm.world_size()} ranks"] = rows
        RESULTS.write_text(json.dumps(known, indent=1) + "\n")
    comm.finish()


def tell(rows: dict[int, dict[str, dict[str, float]]]) -> None:
    print(f"{comm.world_size()} ranks; CPU seconds of rank 0, MiB sent by the busiest rank, and")
    print("MiB above what was held before the update, on rank 0 / on the fullest other")
    print("| N | " + " | ".join(PHASES) + " |")
    print("|---|" + "---|" * len(PHASES))
    for count, phases in rows.items():
        cells = [
            f"{row['cpu_main']:.2f} s, {row['sent_most'] / 2**20:.0f}, "
            f"{row['peak_main'] / 2**20:.0f} / {row['peak_others'] / 2**20:.0f}"
            for row in phases.values()
        ]
        print(f"| {count} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
