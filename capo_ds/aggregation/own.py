"""An aggregator of the user's: a function from a `GramProblem` to N coefficients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any

import numpy as np

from capo_ds.aggregation.problem import Aggregation, GramProblem

PARTS = ("coefficients", "xi", "base", "average")


class OwnAggregatorError(RuntimeError):
    """A user's aggregator has failed, or given what it must not; the text says all."""

    told_whole = True  # so that no traceback of ours is shown beside it


def own_aggregator(name: str, function: Callable[..., Any]) -> Callable[..., Aggregation]:
    """The function as an aggregator: g~ = sum_i c_i g_i with the c (N,) that it gives.

    It is called with the problem and with the options by keyword, and gives N coefficients or an
    `Aggregation`: then its xi and report are logged, and where it is `on_boundary` the length of
    g~ is set by true norms, also if the Gram matrix is one of sketches. The aggregator raises
    RuntimeError, under this name, if the function fails or gives no N finite numbers.
    """

    @wraps(function)
    def aggregator(problem: GramProblem, **options: object) -> Aggregation:
        try:
            answer = function(problem, **options)
            if not isinstance(answer, Aggregation):
                answer = Aggregation(np.asarray(answer, dtype=np.float64))
            report = {key: float(value) for key, value in answer.report.items()}
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # the user's code may raise anything, sys.exit too
            told = " ".join(str(error).split())
            raise OwnAggregatorError(
                f"aggregator {name}: {type(error).__name__}: {told}"
            ) from error
        _check(name, problem.count, answer)
        report["dropped"] = float(problem.dropped.sum())
        return replace(answer, report=report)

    return aggregator


def _check(name: str, count: int, answer: Aggregation) -> None:
    """Raises RuntimeError for what is no aggregation of that many samples."""
    needed = PARTS if answer.on_boundary else PARTS[:1]
    for part in PARTS:
        values = getattr(answer, part)
        if values is None and part not in needed:
            continue
        try:
            values = np.asarray(np.nan if values is None else values, dtype=np.float64)
        except (TypeError, ValueError, RuntimeError):  # the last of tensors elsewhere
            values = np.full((), np.nan)
        if values.shape != (count,) or not np.isfinite(values).all():
            listed = values.ndim == 0 or values.shape == (count,)
            told = np.array2string(values, threshold=4) if listed else f"an array {values.shape}"
            raise OwnAggregatorError(
                f"aggregator {name}: {part}: it must give {count} finite numbers, one a sample, "
                f"and gave {told}"
            )
