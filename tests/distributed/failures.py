"""Ranks of which the last one fails in some way, run by test_failures.py: failures.py WAY.

PHASE:FILE:NAME calls a user's function in that kind of phase, where it fails.
"""

import os
import signal
import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from capo_ds import cli
from capo_ds.config import Config
from capo_ds.distributed import comm, watchdog
from capo_ds.plugins import named
from tests.distributed.collectives import check_all


def wrapped(function: Callable[[], None]) -> None:
    """As what calls a user's function may raise an error of its own from the user's."""
    try:
        function()
    except ZeroDivisionError as error:
        raise RuntimeError(f"the part: {error}") from error


def run(config: Config) -> None:
    way = config.train.output_dir
    last = comm.rank() == comm.world_size() - 1
    if way == "killed":
        check_all()
    if way == "unheard":  # the others are too busy to hear of the failure before they are left
        watchdog.PARTING, watchdog.POLL = 1.0, (watchdog.POLL if last else 60.0)
        time.sleep(1.0)
        way = "collective"
    if last:
        print(f"fails at {time.time()}", flush=True)
    if way == "collective":  # the others wait in a collective that the last never joins
        with comm.collective("Gram matrix"):
            if last:
                raise torch.OutOfMemoryError("tried to allocate 2 TiB")
            dist.all_reduce(torch.zeros(1))
    if way == "unnamed":
        if last:
            raise ZeroDivisionError("a bug")
        dist.all_reduce(torch.zeros(1))
    if way == "killed":
        if last:
            os.kill(os.getpid(), signal.SIGKILL)
        with comm.collective("Gram matrix"):
            dist.all_reduce(torch.zeros(1))
    kind, _, name = way.partition(":")
    phases = {"together": comm.together, "collective": comm.collective}
    if kind == "own":
        named("aggregator", name)() if last else dist.all_reduce(torch.zeros(1))
    if kind in phases:
        with phases[kind]("rollout"):
            if last:
                wrapped(named("sampler", name))
            elif kind == "collective":
                dist.all_reduce(torch.zeros(1))
    raise AssertionError(f"nothing failed on rank {comm.rank()}")


if __name__ == "__main__":
    cli.main(__doc__, run)
