"""launchers/train.py with an engine that takes the first weights it is given, and no others."""

from capo_ds import cli
from capo_ds.config import Config
from capo_ds.rollout.colocated import ColocatedSampler

push = ColocatedSampler._push


def push_once(self, *arguments) -> None:
    if not hasattr(self, "pushed"):
        push(self, *arguments)
    self.pushed = True


def train(config: Config) -> None:
    from capo_ds.trainer import Trainer

    ColocatedSampler._push = push_once
    Trainer(config).run()


if __name__ == "__main__":
    cli.main(__doc__, train)
