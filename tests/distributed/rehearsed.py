"""The start of a training at ZeRO 3 in which something fails: rehearsed.py WHERE ERROR WHO
ARGUMENTS, run by test_rehearsed.py. WHO: `all` ranks, or the `last` alone."""

import sys
import time

import torch

from capo_ds import adapters, cli, rehearsal
from capo_ds.config import Config, ConfigError
from capo_ds.distributed import comm
from capo_ds.trainer import Trainer

PLACES = {"pass": (rehearsal, "largest_logit"), "loading": (adapters, "plain_linear_layers")}
ERRORS = {kind.__name__: kind for kind in (torch.OutOfMemoryError, ValueError, ConfigError)}
PLACES["judging"] = (rehearsal, "log_prob_bound")


def train(config: Config) -> None:
    def fails(*_: object) -> None:
        if WHO == "all" or comm.rank() == comm.world_size() - 1:
            print(f"fails at {time.time()}", flush=True)
            raise ERRORS[ERROR]("too bold")
        return whole(*_)

    module, name = PLACES[WHERE]
    whole = getattr(module, name)
    setattr(module, name, fails)
    Trainer(config)


if __name__ == "__main__":
    WHERE, ERROR, WHO = (sys.argv.pop(1) for _ in range(3))
    cli.main(__doc__, train)
