"""Aggregators of per-sample gradients: a Gram matrix in, one coefficient per sample out.

Pure functions in NumPy float64, the same on every rank that calls them with the same matrix.
"""

from __future__ import annotations

from collections.abc import Callable

from capo_ds.aggregation.diagnostics import diagnose
from capo_ds.aggregation.own import own_aggregator
from capo_ds.aggregation.problem import Aggregation, GramProblem
from capo_ds.aggregation.solver import SolverError
from capo_ds.parts import built_in, names

AGGREGATORS = names("aggregator")
Aggregator = Callable[..., Aggregation]  # called with a `GramProblem`, options by keyword


def aggregate(aggregator: str | Aggregator, problem: GramProblem, **options: object) -> Aggregation:
    """Aggregate by name.

    Args:
        aggregator: one of `AGGREGATORS`; torchjd's by its own name, e.g. `torchjd:UPGrad`; or a
            function that is one (`own_aggregator` makes one of a function that gives
            coefficients).
        problem: N samples.
        options: keyword arguments of that aggregator.

    Raises:
        ValueError: on an unknown name (the text lists the choices) or an option out of range.
        TypeError: on an option that the aggregator does not have.
        ImportError: on one of torchjd's, if that is not installed.
        SolverError: if the program behind it could not be solved.
    """
    if isinstance(aggregator, str):
        aggregator = built_in("aggregator", aggregator)
    return aggregator(problem, **options)


__all__ = [
    "AGGREGATORS",
    "Aggregation",
    "Aggregator",
    "GramProblem",
    "SolverError",
    "aggregate",
    "diagnose",
    "own_aggregator",
]
