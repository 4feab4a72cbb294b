"""Train a language model with CAPO or GRPO: `deepspeed launchers/train.py --config FILE.yaml`."""

from capo_ds import cli
from capo_ds.config import Config


def train(config: Config) -> None:
    from capo_ds.trainer import Trainer  # heavy imports only once the config is known to be good

    Trainer(config).run()


if __name__ == "__main__":
    cli.main(__doc__, train)
