"""Train a language model with CAPO or GRPO.

deepspeed launchers/train.py --config FILE.yaml
"""

from capo_ds import cli
from capo_ds.config import Config


def train(config: Config) -> None:
    from capo_ds.trainer import Trainer  # heavy imports only once the config is known to be good

    Trainer(config).run()


def dry_run(
    config: Config,
    nodes: int | None,
    cluster: str | None,
    prompt: int | None,
    response: int | None,
) -> None:
    """print settings, ranks, estimated memory and communication per step, and exit"""
    if nodes:
        from capo_ds.cost.foretell import foretell

        foretell(config, nodes, cluster, prompt, response)
    else:
        from capo_ds.dry_run import dry_run

        dry_run(config)


def main() -> None:
    cli.main(__doc__, train, dry_run)


if __name__ == "__main__":
    main()
