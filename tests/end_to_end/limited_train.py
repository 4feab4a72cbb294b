"""launchers/train.py whose ranks may have no more than so much memory of their own:
limited_train.py MIB ARGUMENTS, beyond what they have when all is imported; 0: as much as they like.
Each prints the most that it had.

What is mapped from files is not a rank's own, but the system counts it in where it might be written
to, as torch maps weights; so the limit comes once the model is loaded.
"""

import json
import resource
import sys
import threading
import time
from pathlib import Path

import deepspeed.runtime.zero.muon.original_muon  # noqa: F401 # which takes torch's compiler along
import matplotlib.pyplot  # noqa: F401
import numpy as np
import scipy.linalg
import torch
from tensorboard.compat.proto import event_pb2  # noqa: F401

from capo_ds import cli, preparation
from capo_ds.config import Config
from capo_ds.distributed import comm
from capo_ds.trainer import Trainer

EVERY = 0.002  # seconds between two looks


def status(name: str) -> int:
    """Bytes, of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def watch() -> None:
    while True:
        for name in PEAKS:
            PEAKS[name] = max(PEAKS[name], status(name))
        time.sleep(EVERY)


def train(config: Config) -> None:
    size = 64  # enough for the linear algebra's own workspaces: 30 to 100 MiB, by processor
    torch.linalg.eigh(torch.eye(size) @ torch.eye(size))
    scipy.linalg.eigh(np.eye(size) @ np.eye(size))
    before = {name: status(name) for name in PEAKS}
    threading.Thread(target=watch, daemon=True).start()

    def then_limited(load):
        def loaded(*arguments):
            policy = load(*arguments)
            PEAKS["VmData"] = 0
            if LIMIT:
                count = before["VmData"] + LIMIT
                resource.setrlimit(resource.RLIMIT_DATA, (count, resource.RLIM_INFINITY))
            return policy

        return loaded

    preparation.load_policy = then_limited(preparation.load_policy)
    preparation.load_shared_policy = then_limited(preparation.load_shared_policy)
    Trainer(config).run()
    peaks = {name: PEAKS[name] - before[name] for name in PEAKS}
    print(json.dumps({"rank": comm.rank(), **peaks}), flush=True)


if __name__ == "__main__":
    LIMIT, PEAKS = int(sys.argv.pop(1)) * 2**20, {"RssAnon": 0, "VmData": 0}
    cli.main(__doc__, train)
