"""An aggregator of the user's: a function from a `GramProblem` to N coefficients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from capo_ds.aggregation.problem import Aggregation, GramProblem


def own_aggregator(name: str, function: Callable[..., Any]) -> Callable[..., Aggregation]:
    """The function as an aggregator: g~ = sum_i c_i g_i with the c (N,) that it gives.

    It is called with the problem and with the options by keyword. The aggregator raises
    RuntimeError, under this name, if the function fails or gives no N finite numbers.
    """

    def aggregator(problem: GramProblem, **options: object) -> Aggregation:
        try:
            coefficients = np.asarray(function(problem, **options), dtype=np.float64)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # the user's code may raise anything, sys.exit too
            raise RuntimeError(f"aggregator {name}: {type(error).__name__}: {error}") from error
        if coefficients.shape != (problem.count,) or not np.isfinite(coefficients).all():
            raise RuntimeError(
                f"aggregator {name}: it must give {problem.count} finite numbers, one a sample, "
                f"and gave {np.array2string(coefficients, threshold=4)}"
            )
        return Aggregation(coefficients, report={"dropped": float(problem.dropped.sum())})

    return aggregator
