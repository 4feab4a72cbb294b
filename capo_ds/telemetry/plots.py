"""Pictures drawn from a run's metrics log."""

from __future__ import annotations

from pathlib import Path

from capo_ds.telemetry.metrics import read_metrics


def reward_curve(folder: Path) -> Path:
    """Draw training reward and test accuracy over steps, and conflict; returns the PNG's path."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    metrics = read_metrics(folder)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for name, axes, style, label in [
        ("reward/mean", left, "-", "training reward (mean)"),
        ("eval/accuracy", left, "o-", "test accuracy (greedy)"),
        ("conflict/all_before", right, "-", "with the average $g_0$"),
        ("conflict/positive_before", right, ":", "... samples of positive advantage"),
        ("conflict/negative_before", right, ":", "... samples of negative advantage"),
        ("conflict/all_after", right, "-", "with the gradient that is applied"),
    ]:
        axes.plot(*series(metrics, name), style, label=label)
    left.set(title="Reward and accuracy", xlabel="step", ylim=(-1, 1))
    right.set(title="Share of samples whose gradient conflicts", xlabel="step", ylim=(0, 1))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    path = folder / "reward.png"
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def series(metrics: list[dict[str, float]], name: str) -> tuple[list[float], list[float]]:
    """Steps and values of one metric, where it was logged."""
    points = [(line["step"], line[name]) for line in metrics if name in line]
    return [step for step, _ in points], [value for _, value in points]
