"""Two ranks that meet in one collective after the other, run by test_lost.py: lost.py WAY.

They say "going" when they have met once. WAY: forever, or slow (the last rank keeps the others
waiting for longer than a silence may last, asleep and then at work, and all end well); starting:
they say so before they meet, to which the last rank comes late; young: they say so before they have
imported anything large, and then take some seconds over it.
"""

import os
import sys
import time

import capo_ds  # noqa: F401

if sys.argv[-1] == "young":
    print("going", flush=True)
    time.sleep(5)

import torch
import torch.distributed as dist

from capo_ds.distributed import comm, launch
from capo_ds.distributed.watchdog import SILENCE


def meet() -> None:
    with comm.collective("optimizer step"):
        dist.all_reduce(torch.zeros(1))


def be_slow() -> None:
    time.sleep(SILENCE / 2 + 5)
    until = time.monotonic() + SILENCE / 2 + 5
    while time.monotonic() < until:
        torch.randn(200, 200).matrix_power(50)


launch.launcher()
if sys.argv[-1] == "starting":
    launch.discover_ranks()
    print("going", flush=True)
    if os.environ["RANK"] == "1":
        time.sleep(20)
comm.init()
meet()
print("going", flush=True)
if sys.argv[-1] == "slow":
    if comm.rank() == comm.world_size() - 1:
        be_slow()
    meet()
while sys.argv[-1] == "forever":
    meet()
    time.sleep(0.05)
comm.finish()
print("ended well", flush=True)
