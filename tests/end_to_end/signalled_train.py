"""launchers/train.py whose ranks get a signal in the midst of an update, from themselves:
signalled_train.py SIGNAL UPDATE ARGUMENTS, where UPDATE counts this start's updates from 1. With
the word SAMPLER for SIGNAL, rank 1 kills the process of its sampler; with a number it kills that
process, as soon as it has asked a server for responses for the UPDATEth time.
"""

import os
import signal
import sys

import psutil

from capo_ds import cli
from capo_ds.config import Config
from capo_ds.rollout.base import Asked


def send() -> None:
    if SIGNAL.isdecimal():
        os.kill(int(SIGNAL), signal.SIGKILL)
    elif SIGNAL != "SAMPLER":
        os.kill(os.getpid(), signal.Signals[SIGNAL])
    elif os.environ["RANK"] == "1":
        children = psutil.Process().children()
        (sampler,) = (c for c in children if any("rollout.child" in w for w in c.cmdline()))
        sampler.kill()


def train(config: Config) -> None:
    from capo_ds.distributed.engine import CapoEngine
    from capo_ds.rollout.server import ServerSampler
    from capo_ds.trainer import Trainer

    trainer = Trainer(config)
    apply, ask, updates = CapoEngine.apply, ServerSampler.ask, 0

    def ask_signalled(self, *arguments, **more) -> Asked:
        nonlocal updates
        asked = ask(self, *arguments, **more)
        updates += 1
        if updates == UPDATE and os.environ["RANK"] == "1":
            send()
        return asked

    def apply_signalled(self, *arguments) -> float:
        nonlocal updates
        updates += 1
        if updates == UPDATE:  # the gradient is there, the step is not made
            send()
        return apply(self, *arguments)

    if SIGNAL.isdecimal():
        ServerSampler.ask = ask_signalled
    else:
        CapoEngine.apply = apply_signalled
    trainer.run()


if __name__ == "__main__":
    SIGNAL, UPDATE = sys.argv.pop(1), int(sys.argv.pop(1))
    cli.main(__doc__, train)
