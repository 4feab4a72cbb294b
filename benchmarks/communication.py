"""Bytes that CAPO sends beyond data parallelism, counted, on the wire, and by the formula.

    OMP_NUM_THREADS=1 deepspeed --num_accelerators 2 benchmarks/communication.py

Forms the Gram matrix of N vectors of k numbers over the ranks: the exchange of columns and the
reduction of partial matrices. Per rank, the formula is

    exchange: N / W * k * 4 * (W - 1) / W        reduction: N (N + 1) / 2 * 8 (none by rank 0)

and the bar N k 4 + N^2 4. `counted` is what the metrics tell as comm/*_bytes. `wire` is what the
loopback interface saw (Linux, all ranks on one machine; other traffic is in it too, and headers).
Writes benchmarks/results/communication.json.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path

import torch
import torch.distributed as dist

from capo_ds.distributed import comm
from capo_ds.distributed.gram import gram_matrix

RESULTS = Path(__file__).resolve().parent / "results" / "communication.json"
SHAPES = [(64, 8192), (256, 8192), (512, 8192), (512, 65536)]
REPEATS = 3


def loopback_bytes() -> float:
    """Bytes that have left through the loopback interface; NaN where Linux does not count."""
    try:
        lines = Path("/proc/net/dev").read_text().splitlines()
    except OSError:
        return float("nan")
    counters = next(line.split(":")[1].split() for line in lines if line.strip().startswith("lo:"))
    return int(counters[8])


def measure(samples: int, dim: int) -> dict[str, float]:
    ranks = comm.world_size()
    counts = [len(range(rank, samples, ranks)) for rank in range(ranks)]
    mine = torch.randn(counts[comm.rank()], dim)
    seconds, wires = [], []
    comm.take_bytes_sent()
    for _ in range(REPEATS):
        dist.barrier()
        wire, start = loopback_bytes(), time.perf_counter()
        gram_matrix([mine], counts)
        dist.barrier()
        seconds.append(time.perf_counter() - start)
        wires.append(loopback_bytes() - wire)
    sent = comm.take_bytes_sent()
    exchanged, reduced = comm.sum_over_ranks(sent.get("all_to_all", 0), sent["reduce"])
    triangle = samples * (samples + 1) * 4
    return {
        "samples": samples,
        "dim": dim,
        "ranks": ranks,
        "counted": (exchanged + reduced) / REPEATS,
        "formula": samples * dim * 4 * (ranks - 1) / ranks + (ranks - 1) * triangle,
        "wire": statistics.median(wires),
        "bar": samples * dim * 4 + samples**2 * 4,
        "most_by_a_rank": max(comm.gather(sum(sent.values()))) / REPEATS,
        "seconds": statistics.median(seconds),
    }


def main() -> None:
    comm.init()
    rows = [measure(*shape) for shape in SHAPES]
    if comm.is_main():
        print(f"{comm.world_size()} ranks; MiB, of all ranks together where not told otherwise")
        print(
            "| N | k | counted | formula | wire | most by one rank | bar for one rank | seconds |"
        )
        print("|---|---|---|---|---|---|---|---|")
        for row in rows:
            names = ("counted", "formula", "wire", "most_by_a_rank", "bar")
            cells = " | ".join(f"{row[name] / 2**20:.2f}" for name in names)
            print(f"| {row['samples']} | {row['dim']} | {cells} | {row['seconds']:.3f} |")
        known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        known[f"{comm.world_size()} ranks"] = rows
        RESULTS.write_text(json.dumps(known, indent=2) + "\n")
    comm.finish()


if __name__ == "__main__":
    main()
