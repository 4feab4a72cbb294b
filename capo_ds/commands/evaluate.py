r"""Accuracy of a model, with or without an adapter, on benchmarks.

deepspeed launchers/evaluate.py --config launchers/recipes/qwen2.5-1.5b-gsm8k.yaml
deepspeed launchers/evaluate.py --config runs/quickstart/config.yaml \
  --set evaluation.adapter=runs/quickstart/adapter
"""

from capo_ds import cli
from capo_ds.config import Config


def evaluate(config: Config) -> None:
    from capo_ds import evaluation_run  # heavy imports only once the config is known to be good

    evaluation_run.run(config)


def main() -> None:
    cli.main(__doc__, evaluate)


if __name__ == "__main__":
    main()
