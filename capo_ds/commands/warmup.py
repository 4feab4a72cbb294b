"""Supervised warm-up of a causal LM on a task's worked solutions, before RL.

deepspeed launchers/warmup.py --config launchers/recipes/warmup-arithmetic.yaml
python launchers/warmup.py --config FILE --set warmup.max_steps=200
"""

from capo_ds import cli
from capo_ds.config import Config


def warm_up(config: Config) -> None:
    from capo_ds import warmup  # heavy imports only once the config is known to be good
    from capo_ds.distributed import comm

    outcome = warmup.run(config)
    if not outcome.finished:
        if comm.is_main():
            print(f"interrupted after step {outcome.steps}; warmup.resume=auto goes on from there")
    elif comm.is_main():
        settings = config.warmup
        if not outcome.reached:
            print(
                f"warning: warmup.stop_accuracy = {settings.stop_accuracy} was not reached in "
                f"warmup.max_steps = {settings.max_steps}; train longer or on easier problems"
            )
        print(
            f"saved {settings.output_dir} after {outcome.steps} steps: "
            f"greedy test accuracy {outcome.accuracy:.1%}"
        )


def main() -> None:
    cli.main(__doc__, warm_up)


if __name__ == "__main__":
    main()
