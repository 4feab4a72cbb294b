"""Finished or running runs, read back from their folders and grouped over seeds."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, nan
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from capo_ds.config import Config
from capo_ds.parts import labels
from capo_ds.telemetry.metrics import CONFIG_FILE, METRICS_FILE, flat_settings, read_metrics

REPEATED = {"train.seed", "train.output_dir", "train.resume"}  # what repetitions of a run change
# Settings of the aggregator of that name, idle with others.
OWN_SECTIONS = Config.aggregators_with_sections()
NAMES = labels("aggregator") | {"norm": "norm ball", "difference": "trust region"}


class NoRunError(ValueError):
    """A folder that holds no run; the text names it and what it lacks."""


@dataclass(frozen=True)
class Run:
    """settings: `section.key` to value, of those in use. metrics: lines of its log."""

    settings: dict[str, Any]
    metrics: list[dict[str, float]]


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seeds alone, under a label that tells them from other groups."""

    label: str
    runs: list[Run]

    def curve(self, name: str, smoothing: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Steps (s,) that every run logged the metric at, and its values (runs, s).

        smoothing: steps of a centred running mean, which narrows at both ends.
        """
        curves = [dict(zip(*series(run.metrics, name), strict=True)) for run in self.runs]
        steps = sorted(set.intersection(*map(set, curves)))
        values = np.array([[curve[step] for step in steps] for curve in curves])
        return np.array(steps), np.array([running_mean(row, smoothing) for row in values])


def read_run(folder: Path) -> Run:
    """A run from its folder. Raises `NoRunError`."""
    for name in (CONFIG_FILE, METRICS_FILE):
        if not (folder / name).is_file():
            raise NoRunError(
                f"{folder} is no run: it has no {name}; name folders that launchers/train.py wrote "
                "(its train.output_dir)"
            )
    metrics = read_metrics(folder)
    if not metrics:
        raise NoRunError(f"{folder / METRICS_FILE} is empty: the run has not finished a step yet")
    config = yaml.safe_load((folder / CONFIG_FILE).read_text())
    idle = [name for name in OWN_SECTIONS if name != config["aggregator"]]
    used = {name: values for name, values in config.items() if name not in idle}
    return Run(flat_settings(used), metrics)


def group_runs(runs: list[Run]) -> list[Group]:
    """Runs with the same settings but for the seed become one group, in the order given."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(repr(_identity(run)), []).append(run)
    members = list(groups.values())
    identities = [_identity(runs[0]) for runs in members]
    differing = [
        key
        for key in dict.fromkeys(key for identity in identities for key in identity)
        if len({repr(identity[key]) for identity in identities if key in identity}) > 1
    ]
    return [
        Group(_label(identity, differing or ["aggregator"]), runs)
        for identity, runs in zip(identities, members, strict=True)
    ]


def series(metrics: list[dict[str, float]], name: str) -> tuple[list[float], list[float]]:
    """Steps and values of one metric, where it was logged and is a number."""
    points = [(line["step"], line[name]) for line in metrics if isfinite(line.get(name, nan))]
    return [step for step, _ in points], [value for _, value in points]


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Centred mean over `width` values, and over those that are there at both ends."""
    if len(values) <= 1:
        return values
    width = min(width, len(values))
    window = np.ones(width)
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")


def _identity(run: Run) -> dict[str, Any]:
    return {key: value for key, value in run.settings.items() if key not in REPEATED}


def _label(identity: dict[str, Any], keys: list[str]) -> str:
    """The values of these settings, as far as the run has them."""
    return ", ".join(_say(key, identity[key]) for key in keys if key in identity)


def _say(key: str, value: Any) -> str:
    match key:
        case "aggregator" | "capo.region":
            return str(NAMES.get(value, value))
        case "capo.radius":
            return say_radius(value)
    return f"{key.rpartition('.')[2]} = {value}"


def say_radius(radius: float | str) -> str:
    """C, a number or auto."""
    return f"C = {radius}" if isinstance(radius, str) else f"C = {radius:g}"
