"""Tables (Markdown) and figures of the study, from its records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from studied.summaries import (
    DATA_SETS,
    MEASURES,
    WINDOW,
    Record,
    final,
    held_out,
    interval,
    paired,
    series,
    tuned,
)

BASELINE = "mean"
SHOWN = (
    "mean",
    "capo 0.5",
    "capo 1",
    "norm ball",
    "mean, unit",
    "mean, unit, at 3e-4",
    "mean, clipped",
    "mean, fixed_length",
    "capo 0.5, groups",
    "capo auto",
)
# Pairs of methods, whose differences stand in a table of their own: (setting, method, minus this).
COMPARED = (
    ("embedded", "capo 0.5, groups", "capo 0.5"),
    ("embedded", "capo 0.5, half positive", "capo 0.5"),
    ("embedded", "capo 0.5, modules", "capo 0.5"),
    ("embedded", "capo 0.5, layers", "capo 0.5"),
    ("embedded", "capo 0.5, groups, half positive", "capo 0.5, groups"),
    ("embedded", "capo auto, groups", "capo auto"),
    ("embedded", "capo auto, groups", "capo 0.5, groups"),
    ("embedded", "capo 0.5, groups", "mean, clipped"),
    ("embedded", "capo 0.5, half positive", "mean, clipped"),
    ("embedded", "capo 0.5, groups", "mean, unit"),
    ("embedded", "capo 0.5, clipped", "mean, clipped"),
    ("embedded", "capo 1, unit", "mean, unit"),
    ("embedded", "capo auto", "capo 1"),
    ("embedded", "capo 1, rescaled", "capo 1"),
    ("embedded", "mean, fixed_length", "mean, unit"),
    ("embedded", "mean, geometric median", "mean, clipped"),
    ("sgd", "mean, unit", "capo 1"),
    ("apart", "capo 0.5, unit", "mean, unit"),
    ("apart", "mean, clipped", "capo 1"),
    ("apart", "capo auto", "capo 1"),
    ("apart", "capo auto", "mean, unit, at 3e-4"),
    ("apart", "capo 0.5, groups", "capo 0.5"),
    ("apart", "capo 0.5, groups", "mean, clipped"),
    ("apart", "capo 0.5, half positive", "capo 0.5"),
    ("noise", "capo 0.5, groups", "capo 0.5"),
    ("noise", "capo 0.5, groups", "mean, clipped"),
    ("noise", "capo 0.5, half positive", "capo 0.5"),
    ("noise", "mean, geometric median", "mean, clipped"),
)
START, END = "<!-- tables -->", "<!-- end of tables -->"
ONE_TASK = {"worst data set"}  # means nothing where there is one data set


def tables(records: Sequence[Record]) -> str:
    parts = []
    for setting in dict.fromkeys(record["setting"] for record in records):
        methods = final(records, setting)
        if methods:
            parts += [f"### Setting `{setting}`", table(methods, setting)]
            parts += [differences(methods, setting)]
            if setting == "apart":
                parts += [by_data_set(methods)]
        parts += [f"Tuning of `{setting}`: right over the steps / pass@8", rates(records, setting)]
    parts += ["### Other pairs", pairs(records)]
    return "\n\n".join(part for part in parts if part)


def pairs(records: Sequence[Record]) -> str:
    """The differences of `COMPARED`, seed by seed; bold where the interval leaves out 0."""
    names = [name for name in MEASURES if name not in ONE_TASK]
    lines = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for setting, method, other in COMPARED:
        methods = final(records, setting)
        if method in methods and other in methods:
            cells = [_difference(methods[method], methods[other], name) for name in names]
            lines.append(f"| `{setting}`: {method} minus {other} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _difference(own: Sequence[Record], others: Sequence[Record], name: str) -> str:
    """Of two methods in one measure; empty where they share no two seeds."""
    measure, kind, _ = MEASURES[name]
    if not (difference := paired(own, others, measure)):
        return ""
    cell = _cell(difference, kind, sign="+")
    return f"**{cell}**" if difference[1] * difference[2] > 0 else cell


def columns(setting: str) -> list[str]:
    return [name for name in MEASURES if setting == "apart" or name not in ONE_TASK]


def table(methods: dict[str, list[Record]], setting: str) -> str:
    """Means over the seeds, with their bootstrap intervals in brackets."""
    names = columns(setting)
    lines = [f"| method | rate | seeds | {' | '.join(names)} | held-out conflict |"]
    lines.append("|---" * (len(names) + 4) + "|")
    order = sorted(
        methods, key=lambda m: -interval(list(map(MEASURES[names[0]][0], methods[m])))[0]
    )
    for method in order:
        own = methods[method]
        cells = [_cell(interval([MEASURES[n][0](r) for r in own]), MEASURES[n][1]) for n in names]
        conflict = [np.mean([held_out(r, when) for r in own]) for when in ("before", "after")]
        told = "" if np.isnan(conflict).any() else f"{conflict[0]:.0%} → {conflict[1]:.0%}"
        rate = f"{own[0]['rate']:g}"
        lines.append(f"| {method} | {rate} | {len(own)} | {' | '.join(cells)} | {told} |")
    return "\n".join(lines)


def differences(methods: dict[str, list[Record]], setting: str) -> str:
    """To the baseline, seed by seed; bold where the interval leaves out 0."""
    names = columns(setting)
    lines = [f"| minus `{BASELINE}`, paired | {' | '.join(names)} |"]
    lines.append("|---" * (len(names) + 1) + "|")
    for method, own in methods.items():
        if method == BASELINE or BASELINE not in methods:
            continue
        cells = [_difference(own, methods[BASELINE], name) for name in names]
        if any(cells):
            lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def by_data_set(methods: dict[str, list[Record]]) -> str:
    lines = [f"| avg@8 on | {' | '.join(DATA_SETS)} |", "|---" * (len(DATA_SETS) + 1) + "|"]
    for method, own in methods.items():
        cells = [_cell(interval([r["sampled"][n]["avg"] for r in own]), "share") for n in DATA_SETS]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def rates(records: Sequence[Record], setting: str) -> str:
    """Share of right responses over the steps, which decides, and pass@8 at the end, at each rate
    tried, by tuning seed."""
    methods = tuned(records, setting)
    if not methods:
        return "(none of its own: rates of the embedded setting)"
    grid = sorted({rate for own in methods.values() for rate in own})
    lines = [f"| rate | {' | '.join(f'{rate:g}' for rate in grid)} |"]
    lines.append("|---" * (len(grid) + 1) + "|")
    for method, own in methods.items():
        cells = [", ".join(own.get(rate, [])) for rate in grid]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: tuple[float, float, float], kind: str, sign: str = "") -> str:
    scale, digits = {"share": (100, 1), "plain": (1, 2), "count": (1, 1)}[kind]
    mean, low, high = (scale * value for value in values)
    return f"{mean:{sign}.{digits}f} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


def figure(records: Sequence[Record], setting: str, path: Path) -> None:
    """Training accuracy over the steps (mean and range over seeds), and paired differences."""
    methods = final(records, setting)
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.4), layout="constrained")
    for method in [name for name in SHOWN if name in methods]:
        curves = np.array([_smooth(series(r, "reward/accuracy")) for r in methods[method]])
        steps = np.arange(curves.shape[1]) + WINDOW
        left.plot(steps, curves.mean(0), label=f"{method} ({methods[method][0]['rate']:g})")
        left.fill_between(steps, curves.min(0), curves.max(0), alpha=0.12)
    left.set(title=f"{setting}: right responses in training", xlabel="step", ylabel="share")
    left.grid(alpha=0.3)
    left.legend(fontsize=8)
    _forest(right, methods, "right, over steps")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _forest(axes: Axes, methods: dict[str, list[Record]], name: str) -> None:
    measure = MEASURES[name][0]
    base = methods.get(BASELINE, [])
    found = ((m, paired(own, base, measure)) for m, own in methods.items() if m != BASELINE)
    rows = sorted(((m, known) for m, known in found if known), key=lambda row: row[1][0])
    for place, (_, (mean, low, high)) in enumerate(rows):
        axes.plot([100 * low, 100 * high], [place, place], color="tab:blue")
        axes.plot(100 * mean, place, "o", color="tab:blue")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [method for method, _ in rows])
    axes.set(title=f"{name}: minus mean (GRPO), paired, 95%", xlabel="points")
    axes.grid(alpha=0.3)


def _smooth(values: Sequence[float]) -> np.ndarray:
    return np.convolve(values, np.ones(WINDOW) / WINDOW, mode="valid")


def write_tables(records: Sequence[Record], page: Path) -> None:
    """Into the page, between its two marks."""
    before, _, rest = page.read_text().partition(START)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{START}\n\n{tables(records)}\n\n{END}{after}")
