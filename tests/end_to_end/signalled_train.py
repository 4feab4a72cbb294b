"""launchers/train.py whose ranks get a signal in the midst of an update, from themselves:
signalled_train.py SIGNAL UPDATE ARGUMENTS, where UPDATE counts this start's updates from 1. With
the word SAMPLER for SIGNAL, rank 1 kills the process of its sampler.
"""

import os
import signal
import sys

import psutil

from capo_ds import cli
from capo_ds.config import Config


def send() -> None:
    if SIGNAL != "SAMPLER":
        os.kill(os.getpid(), signal.Signals[SIGNAL])
    elif os.environ["RANK"] == "1":
        children = psutil.Process().children()
        (sampler,) = (c for c in children if any("rollout.child" in w for w in c.cmdline()))
        sampler.kill()


def train(config: Config) -> None:
    from capo_ds.distributed.engine import CapoEngine
    from capo_ds.trainer import Trainer

    trainer = Trainer(config)
    apply, updates = CapoEngine.apply, 0

    def apply_signalled(self, *arguments) -> float:
        nonlocal updates
        updates += 1
        if updates == UPDATE:  # the gradient is there, the step is not made
            send()
        return apply(self, *arguments)

    CapoEngine.apply = apply_signalled
    trainer.run()


if __name__ == "__main__":
    SIGNAL, UPDATE = sys.argv.pop(1), int(sys.argv.pop(1))
    cli.main(__doc__, train)
