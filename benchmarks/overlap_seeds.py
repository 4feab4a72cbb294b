"""Does it learn as well with responses that are some steps old? The quickstart with rollout.ahead 0
and K, several seeds of each.

python benchmarks/overlap_seeds.py [--steps 60] [--seeds 5] [--ahead 1] [--output runs/overlap]:
run after run, a seed's two beside each other; runs that are there are gone on with, or only read.
The table has the mean reward of the last third of the steps, and the accuracy on the test problems
at the end; with several seeds also the paired differences and the 95% interval of their mean.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scipy import stats

from capo_ds import Trainer, load_config
from capo_ds.telemetry.metrics import read_metrics

MEASURED = ("reward, last third", "test accuracy at the end")


def run(folder: Path, steps: int, seed: int, ahead: int, own: list[str]) -> tuple[float, float]:
    """What one run learned, see `MEASURED`."""
    settings = {
        "train.steps": steps, "train.seed": seed, "train.eval_every": steps, "train.save_every": 10,
        "train.log_samples_every": 0, "train.output_dir": folder, "train.resume": "auto",
        "rollout.ahead": ahead, "rollout.sampler": "process",
    }  # fmt: skip
    words = [f"{key}={value}" for key, value in settings.items()] + own
    config = load_config("builtin:quickstart", words)
    ended = folder / "adapter" / ".step"
    if not ended.exists() or int(ended.read_text()) < steps:
        Trainer(config).run()
    lines = read_metrics(folder)
    rewards = [line["reward/mean"] for line in lines if 2 * steps / 3 < line["step"] <= steps]
    return float(np.mean(rewards)), lines[steps]["eval/accuracy"]


def interval(values: np.ndarray) -> str:
    """The mean and its 95% interval, by Student's t."""
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    mean = values.mean()
    return f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]"


def table(found: np.ndarray, ahead: int) -> str:
    """found: (seeds, 2 kinds of run, measures)."""
    lines = ["| seed |" + "".join(f" {name}: 0 | ahead {ahead} |" for name in MEASURED)]
    lines.append("|---" * (1 + 2 * len(MEASURED)) + "|")
    for seed, both in enumerate(found):
        lines.append(f"| {seed} |" + "".join(f" {a:.3f} | {b:.3f} |" for a, b in both.T))
    if len(found) > 1:
        for number, name in enumerate(MEASURED):
            without, with_ahead = found[:, 0, number], found[:, 1, number]
            told = interval(without), interval(with_ahead), interval(with_ahead - without)
            lines.append("{}: 0 {}; ahead {}; difference {}".format(name, *told))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--ahead", type=int, default=1)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of all runs"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/overlap"))
    args = parser.parse_args()
    found = []
    for seed in range(args.seeds):
        found.append(
            [
                run(args.output / f"seed{seed}_ahead{k}", args.steps, seed, k, args.set)
                for k in (0, args.ahead)
            ]
        )
        print(table(np.array(found), args.ahead), flush=True)


if __name__ == "__main__":
    main()
