"""The process group, and the few collectives that the trainer needs.

One process with no launcher is a group of one, so that the same code runs under `python`,
`deepspeed`, `torchrun` and `mpirun`.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from capo_ds.config import ConfigError

T = TypeVar("T")
GLOO_SETTLES = 0.2  # seconds
RANK_VARIABLES = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID")


class PeerError(RuntimeError):
    """Some rank failed in a phase; raised on every rank with the same text."""


def launched_rank() -> int:
    """The rank that the launcher gave this process, known before any process group exists."""
    for variable in RANK_VARIABLES:
        if variable in os.environ:
            return int(os.environ[variable])
    return 0


def init(timeout: timedelta = timedelta(minutes=30)) -> torch.device:
    """Join the process group of whatever launcher started this process; return its device.

    nccl where there are GPUs, gloo on CPU. On CPU the cores are shared out among the ranks of
    the machine unless OMP_NUM_THREADS says otherwise.
    """
    if dist.is_initialized():
        return device()
    _discover_ranks()
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    elif "OMP_NUM_THREADS" not in os.environ:
        local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_ranks))
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    # Not through deepspeed.init_distributed: its device_id argument has made later weight syncs
    # hang (allenai/open-instruct#1311), and on CPU it would compile a shared-memory extension.
    dist.init_process_group(backend, timeout=timeout)
    return device()


def _discover_ranks() -> None:
    """Set RANK, LOCAL_RANK, WORLD_SIZE and MASTER_* where the launcher did not."""
    if "RANK" not in os.environ and launched_by_mpi():
        from deepspeed.comm.comm import mpi_discovery

        mpi_discovery(distributed_port=int(os.environ.get("MASTER_PORT", 29500)), verbose=False)
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = str(_free_port())


def launched_by_mpi() -> bool:
    """True under mpirun (OpenMPI or MPICH) and under srun with PMI."""
    return any(name in os.environ for name in RANK_VARIABLES[1:4])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def finish() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        # gloo's threads let go of the last collective's tensors under Python's lock; if they come
        # to it only when the interpreter ends, the process aborts (pytorch/pytorch#179291).
        time.sleep(GLOO_SETTLES)
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank()


def world_size() -> int:
    return dist.get_world_size()


def is_main() -> bool:
    return rank() == 0


def device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def shard(items: list) -> list:
    """This rank's share of a list: every world-size-th item, so shares differ by one at most."""
    return items[rank() :: world_size()]


def gather(value: Any) -> list[Any]:
    """The picklable values of all ranks, in rank order, on every rank."""
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def unshard(items: list) -> list:
    """Undo `shard`: the items of all ranks in their first order, on every rank."""
    shares = gather(items)
    merged: list = [None] * sum(len(share) for share in shares)
    for index, share in enumerate(shares):
        merged[index :: world_size()] = share
    return merged


def broadcast(value: Any) -> Any:
    """Rank 0's picklable value, on every rank."""
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def sum_over_ranks(*values: float) -> list[float]:
    """Sum each number over the ranks, in float64."""
    total = torch.tensor(values, dtype=torch.float64, device=device())
    dist.all_reduce(total)
    return total.tolist()


def on_main(phase: str, function: Callable[[], T]) -> T:
    """Rank 0's result of the function, on every rank.

    Raises:
        PeerError: on every rank, if it fails there.
    """
    result = None
    with together(phase):
        if is_main():
            result = function()
    return broadcast(result)


@contextmanager
def together(phase: str) -> Iterator[None]:
    """Run a phase that has no collectives inside; if it fails on any rank, fail on all.

    Raises:
        ConfigError: on every rank, if the first failing rank found a setting that cannot be used.
        PeerError: on every rank otherwise, naming the phase, that rank and its error.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as caught:
        error = caught
    reports = gather(error and (isinstance(error, ConfigError), type(error).__name__, str(error)))
    for peer, report in enumerate(reports):
        if report:
            bad_config, kind, text = report
            if bad_config:
                raise ConfigError(text) from error
            raise PeerError(f"{phase} failed on rank {peer}: {kind}: {text}") from error
