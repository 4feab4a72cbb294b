"""launchers/train.py whose ranks get a signal in the midst of an update, from themselves:
signalled_train.py SIGNAL UPDATE ARGUMENTS, where UPDATE counts from 1 over the whole run.
"""

import os
import signal
import sys

from capo_ds import cli
from capo_ds.config import Config


def train(config: Config) -> None:
    from capo_ds.distributed.engine import CapoEngine
    from capo_ds.trainer import Trainer

    trainer = Trainer(config)
    apply, updates = CapoEngine.apply, 0

    def apply_signalled(self, *arguments) -> float:
        nonlocal updates
        updates += 1
        if updates == UPDATE:  # the gradient is there, the step is not made
            os.kill(os.getpid(), SIGNAL)
        return apply(self, *arguments)

    CapoEngine.apply = apply_signalled
    trainer.run()


if __name__ == "__main__":
    SIGNAL, UPDATE = signal.Signals[sys.argv.pop(1)], int(sys.argv.pop(1))
    cli.main(__doc__, train)
