"""A rank's memory: what there is, and what is in use."""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import torch

GIB = 2**30


@dataclass(frozen=True)
class Capacity:
    """Bytes of one rank. shared: device and host are one memory (CPU)."""

    device: int
    host: int
    shared: bool = False

    @staticmethod
    def least(capacities: list[Capacity]) -> Capacity:
        """What every rank has."""
        return Capacity(
            min(capacity.device for capacity in capacities),
            min(capacity.host for capacity in capacities),
            capacities[0].shared,
        )


NOTHING = Capacity(0, 0)


def measure_capacity(device: torch.device, ranks_here: int) -> Capacity:
    """What this rank may use, free or its own already; `ranks_here` share the host's memory."""
    host = psutil.virtual_memory().available // ranks_here + psutil.Process().memory_info().rss
    if device.type == "cpu":
        return Capacity(host, host, shared=True)
    return Capacity(torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved(), host)


def used_memory(device: torch.device) -> tuple[str, int]:
    """Metric and bytes on this rank: of a GPU the most that torch held since the last call, on CPU
    the process's resident set now (its peak cannot be measured anew)."""
    if device.type == "cpu":
        return "memory/resident_bytes", psutil.Process().memory_info().rss
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return "memory/peak_bytes", peak


def readable(count: int) -> str:
    """A number of bytes for people."""
    return f"{count / GIB:.2f} GiB" if count >= GIB else f"{count / 2**20:.1f} MiB"
