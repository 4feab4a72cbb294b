"""Aggregators of per-sample gradients: a Gram matrix in, one coefficient per sample out."""

from __future__ import annotations

from collections.abc import Callable

from capo_ds.aggregation.capo import capo
from capo_ds.aggregation.diagnostics import diagnose
from capo_ds.aggregation.problem import Aggregation, GramProblem
from capo_ds.aggregation.solver import SolverError


def mean(problem: GramProblem) -> Aggregation:
    """g_0 itself, which is what GRPO applies."""
    return Aggregation(problem.vanilla.copy())


_BUILT_IN: dict[str, Callable[..., Aggregation]] = {"mean": mean, "capo": capo}
AGGREGATORS = (*_BUILT_IN, "torchjd:<Weighting>")


def aggregate(name: str, problem: GramProblem, **options: object) -> Aggregation:
    """Aggregate by name.

    Args:
        name: one of `AGGREGATORS`.
        problem: N samples.
        options: keyword arguments of that aggregator.

    Raises:
        ValueError: on an unknown name or an option out of range.
    """
    if name in _BUILT_IN:
        return _BUILT_IN[name](problem, **options)
    raise ValueError(f"unknown aggregator {name!r}; choose from {', '.join(AGGREGATORS)}")


__all__ = [
    "AGGREGATORS",
    "Aggregation",
    "GramProblem",
    "SolverError",
    "aggregate",
    "diagnose",
]
