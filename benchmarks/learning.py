"""CAPO against GRPO on the quickstart recipe, over several seeds.

    python benchmarks/learning.py --seeds 0 1 2

Runs (or resumes, or reuses) one training run per aggregator and seed under runs/learning, prints a
table of greedy test accuracy before and after, and writes benchmarks/results/learning.json and
docs/figures/learning.png. About four minutes a run on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from capo_ds.telemetry.metrics import read_metrics
from capo_ds.telemetry.runs import series

REPOSITORY = Path(__file__).resolve().parents[1]
RECIPE = REPOSITORY / "launchers" / "recipes" / "quickstart.yaml"
RUNS = REPOSITORY / "runs" / "learning"
NAMES = {"capo": "CAPO", "mean": "GRPO"}


def train(aggregator: str, seed: int, ranks: int, overrides: list[str]) -> list[dict[str, float]]:
    """The metrics of one run, which is made if it is not there."""
    folder = RUNS / f"{aggregator}-seed{seed}"
    settings = [
        f"aggregator={aggregator}",
        f"train.seed={seed}",
        f"train.output_dir={folder}",
        "train.resume=auto",
        *overrides,
    ]
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--quiet"]
    command += ["--num_accelerators", str(ranks), str(REPOSITORY / "launchers" / "train.py")]
    command += ["--config", str(RECIPE)]
    command += [part for setting in settings for part in ("--set", setting)]
    if not (folder / "adapter").exists():
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        subprocess.run(command, cwd=REPOSITORY, env=environment, check=True)
    return read_metrics(folder)


def summarise(runs: dict[int, list[dict[str, float]]]) -> dict:
    """Accuracies and rewards of one aggregator's runs, by seed."""
    accuracy = {seed: series(metrics, "eval/accuracy")[1] for seed, metrics in runs.items()}
    rewards = {seed: series(metrics, "reward/mean")[1][-10:] for seed, metrics in runs.items()}
    seconds = [
        sum(value for line in metrics for name, value in line.items() if name.startswith("time/"))
        for metrics in runs.values()
    ]
    return {
        "before": [values[0] for values in accuracy.values()],
        "after": [values[-1] for values in accuracy.values()],
        "gain_points": [100 * (values[-1] - values[0]) for values in accuracy.values()],
        "reward_last_10_steps": [statistics.mean(values) for values in rewards.values()],
        "minutes": [spent / 60 for spent in seconds],
        "seeds": list(runs),
    }


def spread(values: list[float], digits: int) -> str:
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def table(summaries: dict[str, dict]) -> str:
    lines = [
        "| method | accuracy before | accuracy after | gain (points) | reward, last 10 steps |",
        "|---|---|---|---|---|",
    ]
    for aggregator, summary in summaries.items():
        after = [100 * value for value in summary["after"]]
        lines.append(
            f"| {NAMES.get(aggregator, aggregator)} | {100 * summary['before'][0]:.1f}% "
            f"| {spread(after, 1)}% | {spread(summary['gain_points'], 1)} "
            f"| {spread(summary['reward_last_10_steps'], 2)} |"
        )
    return "\n".join(lines)


def draw(runs: dict[str, dict[int, list[dict[str, float]]]], path: Path) -> None:
    """Mean over seeds with the range as a band: reward, test accuracy, conflict."""
    figure, panels = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    shown = {
        "reward/mean": "training reward",
        "eval/accuracy": "greedy test accuracy",
        "conflict/all_before": "share of samples in conflict with $g_0$",
    }
    for axes, (name, title) in zip(panels, shown.items(), strict=True):
        for aggregator, by_seed in runs.items():
            curves = [series(metrics, name) for metrics in by_seed.values()]
            values = np.array([smooth(curve[1], name) for curve in curves])
            steps = curves[0][0]
            axes.plot(steps, values.mean(0), label=NAMES.get(aggregator, aggregator))
            axes.fill_between(steps, values.min(0), values.max(0), alpha=0.2)
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)


def smooth(values: list[float], name: str, width: int = 5) -> np.ndarray:
    """Running mean over steps; evaluations are shown as they are."""
    if name.startswith("eval/"):
        return np.array(values)
    padded = np.pad(values, width // 2, mode="edge")
    return np.convolve(padded, np.ones(width) / width, mode="valid")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--aggregators", nargs="+", default=list(NAMES))
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    runs: dict[str, dict[int, list[dict[str, float]]]] = {name: {} for name in args.aggregators}
    for seed in args.seeds:
        for aggregator in args.aggregators:
            runs[aggregator][seed] = train(aggregator, seed, args.ranks, args.set)
    summaries = {aggregator: summarise(by_seed) for aggregator, by_seed in runs.items()}
    results = REPOSITORY / "benchmarks" / "results" / "learning.json"
    results.write_text(json.dumps(summaries, indent=2) + "\n")
    draw(runs, REPOSITORY / "docs" / "figures" / "learning.png")
    print(table(summaries))


if __name__ == "__main__":
    main()
