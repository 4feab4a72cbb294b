"""Ranks of which the last one fails in some way, run by test_failures.py: failures.py WAY."""

import os
import signal
import time

import torch
import torch.distributed as dist

from capo_ds import cli
from capo_ds.config import Config
from capo_ds.distributed import comm
from tests.distributed.collectives import check_all


def run(config: Config) -> None:
    way = config.train.output_dir
    last = comm.rank() == comm.world_size() - 1
    if way == "killed":
        check_all()
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
    raise AssertionError(f"nothing failed on rank {comm.rank()}")


if __name__ == "__main__":
    cli.main(__doc__, run)
