"""From the records of runs to numbers by seed, and to intervals."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from studied.plan import SEEDS, TUNING_SEEDS

Record = dict
HARDEST = {"apart": "level 4"}  # of the levels trained on; elsewhere it is level 3
DATA_SETS = ("total", "before", "backwards")
REACHED = 0.5  # share of right responses in training, over `WINDOW` steps
WINDOW = 5
DRAWS = 10_000


def series(record: Record, name: str) -> list[float]:
    return record["steps"]["series"][name]


def steps_to_threshold(record: Record) -> float:
    """First step whose running accuracy reaches `REACHED`; one more than there are if none does."""
    accuracy = series(record, "reward/accuracy")
    for step in range(WINDOW, len(accuracy) + 1):
        if statistics.fmean(accuracy[step - WINDOW : step]) >= REACHED:
            return step
    return len(accuracy) + 1


def worst_data_set(record: Record) -> float:
    return min(record["sampled"][name]["avg"] for name in DATA_SETS)


def hardest_level(record: Record) -> float:
    return record["sampled"][HARDEST.get(record["setting"], "level 3")]["avg"]


def held_out(record: Record, when: str) -> float:
    return record["steps"]["means"].get(f"conflict/heldout_all_{when}", float("nan"))


# Title in the tables: (what it is of a record, as a share or plain, whether more is better)
MEASURES: dict[str, tuple[Callable[[Record], float], str, bool]] = {
    "reward, over steps": (lambda r: statistics.fmean(series(r, "reward/mean")), "plain", True),
    "right, over steps": (lambda r: statistics.fmean(series(r, "reward/accuracy")), "share", True),
    "steps to 50%": (steps_to_threshold, "count", False),
    "greedy": (lambda r: r["greedy"]["all"]["avg"], "share", True),
    "avg@8": (lambda r: r["sampled"]["all"]["avg"], "share", True),
    "pass@8": (lambda r: r["sampled"]["all"]["pass"], "share", True),
    "hardest level": (hardest_level, "share", True),
    "worst data set": (worst_data_set, "share", True),
    "entropy": (lambda r: statistics.fmean(series(r, "rollout/entropy")[-10:]), "plain", True),
}


def final(records: Sequence[Record], setting: str) -> dict[str, list[Record]]:
    """Method to the records of its fresh seeds, in order of seeds; methods with none left out."""
    methods: dict[str, dict[int, Record]] = {}
    for record in records:
        if record["setting"] == setting and record["seed"] in SEEDS:
            methods.setdefault(record["method"], {})[record["seed"]] = record
    return {name: [own[seed] for seed in sorted(own)] for name, own in methods.items()}


def tuned(records: Sequence[Record], setting: str) -> dict[str, dict[float, list[str]]]:
    """Method to rate to what its tuning runs gave: right over the steps / pass@8 at the end."""
    methods: dict[str, dict[float, list[str]]] = {}
    for record in sorted(records, key=lambda r: (r["rate"], r["seed"])):
        if record["setting"] == setting and record["seed"] in TUNING_SEEDS:
            right = statistics.fmean(series(record, "reward/accuracy"))
            told = f"{right:.1%} / {record['sampled']['all']['pass']:.0%}"
            methods.setdefault(record["method"], {}).setdefault(record["rate"], []).append(told)
    return methods


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, and the 2.5% and 97.5% quantiles of its bootstrap distribution over seeds."""
    known = np.asarray(values, dtype=float)
    draws = np.random.default_rng(0).integers(len(known), size=(DRAWS, len(known)))
    low, high = np.quantile(known[draws].mean(1), [0.025, 0.975])
    return float(known.mean()), float(low), float(high)


def paired(
    own: Sequence[Record], base: Sequence[Record], measure: Callable[[Record], float]
) -> tuple[float, float, float] | None:
    """Interval of the difference to the baseline on the seeds that both have; None below 3."""
    theirs: Mapping[int, float] = {record["seed"]: measure(record) for record in base}
    differences = [measure(r) - theirs[r["seed"]] for r in own if r["seed"] in theirs]
    return interval(differences) if len(differences) >= 3 else None
