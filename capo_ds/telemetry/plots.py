"""The paper's figures, drawn from the logs of runs.

Where a group of runs differs in the seed alone, a line is the mean over its seeds and the band
their range.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from capo_ds.telemetry.metrics import read_metrics
from capo_ds.telemetry.runs import Group, series

SMOOTHING = 5  # steps
# Okabe and Ito's colours, which the colour-blind tell apart; dashes tell them apart in grey too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)))
HATCHES = ("", "///", "...", "\\\\\\", "xxx")
SAMPLES = {"all": "all samples", "positive": "positive advantage", "negative": "negative advantage"}
CONFLICTS = {
    "{}_after": r"with the applied $\tilde g$",
    "{}_before": "with the average $g_0$",
    "heldout_{}_after": r"unseen samples, with $\tilde g$",
    "heldout_{}_before": "unseen samples, with $g_0$",
}
STYLE: dict[Any, Any] = {
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.hashsalt": "capo_ds",  # the same picture is the same file
}


class NothingToDrawError(ValueError):
    """The runs have not logged the metric that a figure shows; the text names it."""


def draw(groups: list[Group], name: str, folder: Path) -> list[Path]:
    """Draw one of `figures.FIGURES` into the folder, as PNG and SVG; their paths.

    Raises:
        NothingToDrawError: if no group has logged what the figure shows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.png", folder / f"{name}.svg"]
    with plt.rc_context(STYLE):
        figure = DRAWINGS[name](groups)
        figure.savefig(paths[0], dpi=120)
        figure.savefig(paths[1], metadata={"Date": None})
    plt.close(figure)
    return paths


def conflict(groups: list[Group]) -> Figure:
    """A row per group, a panel per sign of the advantage."""
    groups = _with_metric(groups, "conflict/all_before")
    figure, rows = _panels(len(groups), len(SAMPLES), height=2.6 if len(groups) > 1 else 3.4)
    for row, group in zip(rows, groups, strict=True):
        for axes, samples in zip(row, SAMPLES, strict=True):
            for index, (key, label) in enumerate(CONFLICTS.items()):
                curve = group.curve(f"conflict/{key.format(samples)}", SMOOTHING)
                if len(curve[0]):  # not every run measures unseen samples
                    _line(axes, curve, index, label)
            axes.yaxis.set_major_formatter("{x:.0%}")
        row[0].set_ylabel(group.label.replace(", ", "\n") if len(groups) > 1 else "share")
    for top, bottom, title in zip(rows[0], rows[-1], SAMPLES.values(), strict=True):
        top.set_title(title)
        bottom.set_xlabel("step")
    rows[0][-1].set_ylim(bottom=-0.01)  # so that a line at 0 is seen
    handles, labels = rows[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    _caption(figure, "Share of samples whose gradient conflicts", groups)
    return figure


def evaluation(groups: list[Group]) -> Figure:
    """A panel per benchmark, a line per group."""
    logged = {name for group in groups for line in group.runs[0].metrics for name in line}
    several = sorted(n for n in logged if n.startswith("eval/") and n.count("/") == 2)
    names = [name for name in several if name.endswith("/accuracy")] or ["eval/accuracy"]
    figure, (row,) = _panels(1, len(names))
    for axes, name in zip(row, names, strict=True):
        for index, group in enumerate(_with_metric(groups, name)):
            _line(axes, group.curve(name), index, group.label, marker="o", markersize=4)
        axes.yaxis.set_major_formatter("{x:.0%}")
        axes.set(xlabel="step", title=name.split("/")[1] if several else "")
    row[0].set_ylabel("test accuracy")
    _legend(figure, row[0], groups)
    _caption(figure, "Greedy test accuracy", groups, smoothing=1)
    return figure


def reward(groups: list[Group]) -> Figure:
    """A line per group."""
    figure, ((axes,),) = _panels(1, 1)
    for index, group in enumerate(_with_metric(groups, "reward/mean")):
        _line(axes, group.curve("reward/mean", SMOOTHING), index, group.label)
    axes.set(xlabel="step", ylabel="training reward")
    _legend(figure, axes, groups)
    _caption(figure, "Mean reward of the step's responses", groups)
    return figure


def phases(groups: list[Group]) -> Figure:
    """A bar per group, the longest phase first."""
    spent = [_seconds_per_step(group) for group in _with_metric(groups, "time/rollout")]
    names = sorted(set().union(*spent), key=lambda n: -max(s.get(n, 0.0) for s in spent))
    figure, ((axes,),) = _panels(1, 1, height=1.6 + 0.45 * len(groups))
    left = np.zeros(len(groups))
    for index, name in enumerate(names):
        width = np.array([seconds.get(name, 0.0) for seconds in spent])
        axes.barh(
            [group.label for group in groups],
            width,
            left=left,
            color=COLOURS[index % len(COLOURS)],
            hatch=HATCHES[index // len(COLOURS) % len(HATCHES)],
            edgecolor="white",
            label=name.removeprefix("time/").replace("_", " "),
        )
        left += width
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set(xlabel="seconds per step", title="Where the time goes")
    figure.legend(loc="outside lower center", ncols=4)
    return figure


# By their names in `figures.FIGURES`.
DRAWINGS: dict[str, Callable[[list[Group]], Figure]] = {
    "conflict": conflict,
    "evaluation": evaluation,
    "reward": reward,
    "phases": phases,
}


def reward_curve(folder: Path) -> Path:
    """Draw training reward and test accuracy over steps, and conflict; returns the PNG's path."""
    metrics = read_metrics(folder)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    shares = left.twinx()  # rewards are of any scale, accuracies of one
    for name, axes, style, label in [
        ("reward/mean", left, ".-", "training reward (mean)"),
        ("eval/accuracy", shares, "o--", "test accuracy (greedy)"),
        ("conflict/all_before", right, ".-", "with the average $g_0$"),
        ("conflict/positive_before", right, ".:", "... samples of positive advantage"),
        ("conflict/negative_before", right, ".:", "... samples of negative advantage"),
        ("conflict/all_after", right, ".-", "with the gradient that is applied"),
    ]:
        steps, values = series(metrics, name)
        if steps:
            colour = {"color": COLOURS[1]} if axes is shares else {}
            axes.plot(steps, values, style, label=label, **colour)
    left.set(title="Reward and accuracy", xlabel="step", ylabel="reward")
    right.set(title="Share of samples whose gradient conflicts", xlabel="step", ylim=(0, 1))
    shares.set(ylim=(-0.02, 1.02), ylabel="accuracy")
    for axes in (shares, right):
        axes.yaxis.set_major_formatter("{x:.0%}")
    handles = left.get_lines() + shares.get_lines()
    left.legend(handles, [line.get_label() for line in handles])
    if right.get_lines():
        right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
        _whole_steps(axes)
    path = folder / "reward.png"
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def _with_metric(groups: list[Group], name: str) -> list[Group]:
    """Those groups of which every run has logged the metric; `NothingToDrawError` if none has."""
    kept = [group for group in groups if len(group.curve(name)[0])]
    if not kept:
        raise NothingToDrawError(f"none of the runs has logged {name}")
    return kept


def _seconds_per_step(group: Group) -> dict[str, float]:
    """Mean seconds per training step of each phase, over the group's runs."""
    totals: dict[str, float] = {}
    steps = sum(len(series(run.metrics, "reward/mean")[0]) for run in group.runs)
    for line in (line for run in group.runs for line in run.metrics):
        for name, seconds in line.items():
            if name.startswith("time/"):
                totals[name] = totals.get(name, 0.0) + seconds
    return {name: seconds / steps for name, seconds in totals.items()}


def _panels(rows: int, columns: int, height: float = 3.4) -> tuple[Figure, np.ndarray]:
    """A figure, and its axes (rows, columns), which share their scales."""
    width = max(7.0, 3.6 * columns)
    return plt.subplots(
        rows,
        columns,
        figsize=(width, height * rows + 0.6),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )


def _whole_steps(axes: Axes) -> None:
    """Ticks at whole steps only, also for a run of one."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    low, high = axes.get_xlim()
    if high - low < 1:
        middle = round((low + high) / 2)
        axes.set_xlim(middle - 0.5, middle + 0.5)


def _line(
    axes: Axes, curve: tuple[np.ndarray, np.ndarray], index: int, label: str, **style: Any
) -> None:
    """The mean over runs of a curve, and their range as a band."""
    steps, values = curve
    colour = COLOURS[index % len(COLOURS)]
    dash = DASHES[index % len(DASHES)]
    if len(steps) == 1:
        style = {"marker": "o"} | style  # a line of one point is not seen
    axes.plot(steps, values.mean(0), color=colour, linestyle=dash, label=label, **style)
    _whole_steps(axes)
    if len(values) > 1:
        axes.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.15, lw=0)


def _legend(figure: Figure, axes: Axes, groups: list[Group]) -> None:
    if len(groups) > 1:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right center")


def _caption(figure: Figure, title: str, groups: list[Group], smoothing: int = SMOOTHING) -> None:
    """The title, and below it what a line and its band are."""
    notes = [f"running mean over {smoothing} steps"] if smoothing > 1 else []
    seeds = sorted({len(group.runs) for group in groups})
    if seeds[-1] > 1:
        count = " or ".join(map(str, seeds))
        notes.append(f"line: mean of {count} seeds, band: their range")
    figure.suptitle("\n".join([title, "; ".join(notes)]).rstrip(), fontsize="medium")
