"""The runs of the study, in the order in which they are worth having.

A *cell* is a method on a setting. Its learning rate is tuned on seeds of its own: the grid on the
first of them, the best two of it on the second; where the best is at the edge, the grid grows.
The seeds that count are fresh ones, the same for all methods (paired).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

TUNING_SEEDS = (100, 101)
SEEDS = (0, 1, 2, 3, 4)
GRID = (3e-4, 1e-3, 3e-3)
LIMITS = (1e-5, 1e-1)  # the grid does not grow beyond these
OWN = "benchmarks/studied/aggregators.py"

METHODS: dict[str, dict[str, Any]] = {
    "mean": {"aggregator": "mean"},
    "capo 0.1": {"aggregator": "capo", "capo.radius": 0.1},
    "capo 0.5": {"aggregator": "capo", "capo.radius": 0.5},
    "capo 1": {"aggregator": "capo", "capo.radius": 1.0},
    "norm ball": {"aggregator": "capo", "capo.radius": 1.0, "capo.region": "norm"},
    "mean, unit": {"aggregator": f"{OWN}:norms_unit"},
    "mean, clipped": {"aggregator": f"{OWN}:norms_clipped"},
    "capo 0.5, unit": {"aggregator": f"{OWN}:capo05_unit"},
    "capo 0.5, clipped": {"aggregator": f"{OWN}:capo05_clipped"},
    "capo 1, unit": {"aggregator": f"{OWN}:capo1_unit"},
    "mean, fixed_length": {"aggregator": "mean", "objective.loss_aggregation": "fixed_length"},
    "MGDA": {"aggregator": "mgda"},
    "PCGrad": {"aggregator": "pcgrad"},
    "CAGrad": {"aggregator": "cagrad"},
    "ConFIG": {"aggregator": "config"},
    "UPGrad": {"aggregator": "torchjd:UPGrad"},
    "capo 1, rescaled": {"aggregator": f"{OWN}:capo1_rescaled"},
    "norm ball, rescaled": {"aggregator": f"{OWN}:ball_rescaled"},
}

COMMON: dict[str, Any] = {
    "deepspeed": "ds_configs/zero0.json",
    "rollout.prompts_per_step": 16,
    "rollout.group_size": 8,
    "objective.kl_weight": 0.0,
    "train.steps": 40,
    "train.eval_every": 10,
    "train.save_every": 20,
    "train.keep_checkpoints": 1,
    "train.log_samples": 0,
    "train.resume": "auto",
}
SETTINGS: dict[str, dict[str, Any]] = {
    "embedded": COMMON | {"task.test_problems": 128},
}
# Cells in order of priority: (setting, methods).
CELLS: list[tuple[str, tuple[str, ...]]] = [
    (
        "embedded",
        ("mean", "capo 0.5", "capo 1", "mean, unit", "mean, clipped", "norm ball", "capo 0.1"),
    ),
    ("embedded", ("capo 0.5, clipped", "capo 0.5, unit", "UPGrad", "CAGrad", "PCGrad", "ConFIG")),
    ("embedded", ("MGDA", "mean, fixed_length", "capo 1, unit")),
]


@dataclass(frozen=True)
class Run:
    setting: str
    method: str
    rate: float
    seed: int

    @property
    def name(self) -> str:
        """Of its folder and record."""
        method = self.method.replace(", ", "-").replace(" ", "")
        return f"{self.setting}/{method}/{self.rate:g}-seed{self.seed}"

    @property
    def overrides(self) -> dict[str, Any]:
        """`section.key` to value."""
        own = {"optimizer.learning_rate": self.rate, "train.seed": self.seed}
        return SETTINGS[self.setting] | METHODS[self.method] | own


Scores = Mapping[Run, float]  # of finished runs, the higher the better


def wanted(scores: Scores) -> Iterator[Run]:
    """The runs that are to be made, given those that are finished; in order."""
    for setting, methods in CELLS:
        for method in methods:
            yield from missing(setting, method, scores)


def missing(setting: str, method: str, scores: Scores) -> list[Run]:
    """The next runs of a cell: they may be made at the same time; empty when it is done."""
    tuning = [run for run in tuning_runs(setting, method, scores) if run not in scores]
    if tuning:
        return tuning
    rate = best_rate(setting, method, scores)
    final = [Run(setting, method, rate, seed) for seed in SEEDS]
    return [run for run in final if run not in scores]


def tuning_runs(setting: str, method: str, scores: Scores) -> list[Run]:
    """All tuning runs that the finished ones call for."""
    first, second = TUNING_SEEDS
    rates = grid(setting, method, scores)
    runs = [Run(setting, method, rate, first) for rate in rates]
    if any(run not in scores for run in runs):
        return runs
    best = sorted(runs, key=scores.__getitem__, reverse=True)[:2]
    return runs + [Run(setting, method, run.rate, second) for run in best]


def grid(setting: str, method: str, scores: Scores) -> list[float]:
    """The rates to try on the first tuning seed: `GRID`, grown beyond an edge that is best."""
    rates = list(GRID)
    while True:
        runs = [Run(setting, method, rate, TUNING_SEEDS[0]) for rate in rates]
        if any(run not in scores for run in runs):
            return rates
        best = max(runs, key=scores.__getitem__).rate
        further = {rates[0]: next_rate(best, -1), rates[-1]: next_rate(best, 1)}.get(best)
        if further is None or not LIMITS[0] <= further <= LIMITS[1]:
            return rates
        rates = sorted([*rates, further])


def next_rate(rate: float, direction: int) -> float:
    """1e-4, 3e-4, 1e-3, 3e-3 ...: the neighbour."""
    mantissa, exponent = f"{rate:e}".split("e")
    ladder = {("1", 1): "3e+0", ("3", 1): "1e+1", ("1", -1): "3e-1", ("3", -1): "1e+0"}
    factor, power = ladder[mantissa[0], direction].split("e")
    return float(f"{factor}e{int(exponent) + int(power)}")


def best_rate(setting: str, method: str, scores: Scores) -> float:
    """The rate with the best mean over both tuning seeds, among those that have both."""
    second = [run for run in tuning_runs(setting, method, scores) if run.seed == TUNING_SEEDS[1]]

    def mean(rate: float) -> float:
        return statistics.fmean(scores[Run(setting, method, rate, seed)] for seed in TUNING_SEEDS)

    return max((run.rate for run in second), key=mean)
