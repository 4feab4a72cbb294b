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
LIMITS = (1e-4, 1e6)  # the grid does not grow beyond these
OWN = "benchmarks/studied/aggregators.py"

METHODS: dict[str, dict[str, Any]] = {
    "mean": {"aggregator": "mean"},
    "capo 0.1": {"aggregator": "capo", "capo.radius": 0.1},
    "capo 0.5": {"aggregator": "capo", "capo.radius": 0.5},
    "capo 1": {"aggregator": "capo", "capo.radius": 1.0},
    "norm ball": {"aggregator": "capo", "capo.radius": 1.0, "capo.region": "norm"},
    "mean, unit": {"aggregator": "mean", "program.norms": "unit"},
    "mean, unit, at 3e-4": {"aggregator": "mean", "program.norms": "unit"},
    "mean, clipped": {"aggregator": "mean", "program.norms": "clip"},
    "capo 0.5, unit": {"aggregator": "capo", "capo.radius": 0.5, "program.norms": "unit"},
    "capo 0.5, clipped": {"aggregator": "capo", "capo.radius": 0.5, "program.norms": "clip"},
    "capo 1, unit": {"aggregator": "capo", "capo.radius": 1.0, "program.norms": "unit"},
    "capo auto": {"aggregator": "capo", "capo.radius": "auto"},
    "capo 0.5, half positive": {
        "aggregator": "capo",
        "capo.radius": 0.5,
        "capo.positive_share": 0.5,
    },
    "capo 0.5, groups": {"aggregator": "capo", "capo.radius": 0.5, "program.tasks": "group"},
    "capo 0.5, modules": {"aggregator": "capo", "capo.radius": 0.5, "program.blocks": "module"},
    "capo 0.5, layers": {"aggregator": "capo", "capo.radius": 0.5, "program.blocks": "layer"},
    "capo auto, groups": {
        "aggregator": "capo",
        "capo.radius": "auto",
        "program.tasks": "group",
    },
    "capo 0.5, groups, half positive": {
        "aggregator": "capo",
        "capo.radius": 0.5,
        "program.tasks": "group",
        "capo.positive_share": 0.5,
    },
    "mean, geometric median": {"aggregator": "mean", "program.average": "geometric_median"},
    "mean, fixed_length": {"aggregator": "mean", "objective.loss_aggregation": "fixed_length"},
    "MGDA": {"aggregator": "mgda"},
    "PCGrad": {"aggregator": "pcgrad"},
    "CAGrad": {"aggregator": "cagrad"},
    "ConFIG": {"aggregator": "conflict_free"},
    "UPGrad": {"aggregator": "torchjd:UPGrad"},
    "capo 1, rescaled": {"aggregator": f"{OWN}:capo1_rescaled"},
    "norm ball, rescaled": {"aggregator": f"{OWN}:ball_rescaled"},
}

SGD_EPSILON = 1e3
APART_MODEL = "runs/study/apart-model"
GRIDS = {"sgd": (3e2, 1e3, 3e3)}

COMMON: dict[str, Any] = {
    "deepspeed": "ds_configs/zero0.json",
    "rollout.prompts_per_step": 16,
    "rollout.group_size": 8,
    "objective.kl_weight": 0.0,
    "train.steps": 40,
    "train.eval_every": 10,
    "train.save_every": 20,
    "train.keep_checkpoints": 1,
    "train.log_samples_every": 0,
    "train.resume": "auto",
}
SETTINGS: dict[str, dict[str, Any]] = {
    "embedded": COMMON | {"task.test_problems": 128},
    # The same once more, by code that measures held-out conflict.
    "held out": COMMON | {"task.test_problems": 128},
    # Three data sets that pull apart, see apart.yaml.
    "apart": COMMON | {"model.path": APART_MODEL},
    # One verdict in ten is flipped; rates are those of the embedded setting.
    "noise": COMMON
    | {
        "task.test_problems": 128,
        "reward.functions": [{"function": "benchmarks/studied/noise.py:flipped"}],
    },
    # Adam with an epsilon far above any gradient: SGD with momentum 0.9.
    "sgd": COMMON | {"task.test_problems": 128, "optimizer.epsilon": SGD_EPSILON},
}
RECIPES = {"apart": "benchmarks/studied/apart.yaml"}
SEEDS_OF = {"held out": (0, 1)}
RATES_OF = {"noise": "embedded", "held out": "embedded"}  # settings that take over tuned rates
FIXED_RATES = {"mean, unit, at 3e-4": 3e-4}  # not tuned: another rate of a tuned method
TUNED_ON_BOTH = {"embedded"}  # settings tuned on both seeds; on the first alone elsewhere
TUNED_ON_ONE = {  # methods, too
    "capo auto",
    "capo 0.5, half positive",
    "mean, fixed_length",
    "mean, geometric median",
    "capo 0.5, groups",
    "capo 0.5, modules",
    "capo 0.5, layers",
    "capo auto, groups",
    "capo 0.5, groups, half positive",
    "capo 1, rescaled",
    "norm ball, rescaled",
    "capo 1, unit",
    "MGDA",
}
# Cells in order of priority: (setting, methods).
CELLS: list[tuple[str, tuple[str, ...]]] = [
    (
        "embedded",
        ("mean", "capo 0.5", "capo 1", "mean, unit", "mean, clipped", "norm ball", "capo 0.1"),
    ),
    ("embedded", ("capo 0.5, clipped", "capo 0.5, unit", "UPGrad", "CAGrad", "PCGrad")),
    ("apart", ("mean", "mean, unit", "capo 1")),
    ("held out", ("mean", "mean, unit", "capo 1", "capo 0.5")),
    ("noise", ("mean", "mean, unit")),
    ("apart", ("mean, unit, at 3e-4",)),
    ("noise", ("capo 1",)),
    ("embedded", ("capo auto",)),
    ("noise", ("capo 0.5", "mean, clipped")),
    ("apart", ("capo 0.5", "mean, clipped", "capo auto", "capo 0.5, unit")),
    ("sgd", ("mean", "capo 1", "norm ball", "mean, unit")),
    ("embedded", ("capo 1, rescaled", "norm ball, rescaled")),
    ("embedded", ("capo 0.5, half positive", "mean, fixed_length")),
    ("embedded", ("mean, geometric median", "capo 0.5, groups", "capo 0.5, modules")),
    ("embedded", ("capo 1, unit", "MGDA", "ConFIG")),
    ("apart", ("norm ball", "PCGrad", "CAGrad", "capo 0.1", "ConFIG", "MGDA")),
    ("apart", ("capo 0.5, groups", "capo 0.5, half positive")),
    ("embedded", ("capo auto, groups", "capo 0.5, groups, half positive")),
    ("noise", ("mean, geometric median",)),
    ("noise", ("capo 0.5, groups", "capo 0.5, half positive", "capo auto")),
    ("apart", ("UPGrad",)),
    ("embedded", ("capo 0.5, layers",)),
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
        return f"{self.setting.replace(' ', '')}/{method}/{self.rate:g}-seed{self.seed}"

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
    if method in FIXED_RATES:
        final = [Run(setting, method, FIXED_RATES[method], seed) for seed in SEEDS]
        return [run for run in final if run not in scores]
    tuned = RATES_OF.get(setting, setting)
    tuning = [run for run in tuning_runs(tuned, method, scores) if run not in scores]
    if tuning:
        return tuning
    rate = best_rate(tuned, method, scores)
    final = [Run(setting, method, rate, seed) for seed in SEEDS_OF.get(setting, SEEDS)]
    return [run for run in final if run not in scores]


def tuning_runs(setting: str, method: str, scores: Scores) -> list[Run]:
    """All tuning runs that the finished ones call for."""
    first, second = TUNING_SEEDS
    rates = grid(setting, method, scores)
    runs = [Run(setting, method, rate, first) for rate in rates]
    if any(run not in scores for run in runs):
        return runs
    if not twice(setting, method):
        return runs
    best = sorted(runs, key=scores.__getitem__, reverse=True)[:2]
    return runs + [Run(setting, method, run.rate, second) for run in best]


def twice(setting: str, method: str) -> bool:
    """Whether a cell is tuned on both tuning seeds."""
    return setting in TUNED_ON_BOTH and method not in TUNED_ON_ONE


def grid(setting: str, method: str, scores: Scores) -> list[float]:
    """The rates to try on the first tuning seed: `GRID`, grown beyond an edge that is best."""
    rates = list(GRIDS.get(setting, GRID))
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
    """The rate with the best mean over the tuning seeds, among those that have all of them."""
    seeds = TUNING_SEEDS if twice(setting, method) else TUNING_SEEDS[:1]
    last = [run for run in tuning_runs(setting, method, scores) if run.seed == seeds[-1]]

    def mean(rate: float) -> float:
        return statistics.fmean(scores[Run(setting, method, rate, seed)] for seed in seeds)

    return max((run.rate for run in last), key=mean)
