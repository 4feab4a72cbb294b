"""An aggregator of the user's: `file.py:function`, from a `GramProblem` to N coefficients."""

from __future__ import annotations

import numpy as np

from capo_ds.aggregation.problem import Aggregation, GramProblem
from capo_ds.plugins import load_function, what

MARK = ".py:"


def own_aggregator(name: str, problem: GramProblem) -> Aggregation:
    """g~ = sum_i c_i g_i with the c (N,) that the function gives.

    Raises:
        ConfigError: if there is no such function.
        RuntimeError: if it fails, or gives no N finite numbers.
    """
    function = load_function("aggregator", name)
    try:
        coefficients = np.asarray(function(problem), dtype=np.float64)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the user's code may raise anything, sys.exit too
        raise RuntimeError(f"aggregator {name}: {what(error)}") from error
    if coefficients.shape != (problem.count,) or not np.isfinite(coefficients).all():
        raise RuntimeError(
            f"aggregator {name}: it must give {problem.count} finite numbers, one a sample, and "
            f"gave {np.array2string(coefficients, threshold=4)}"
        )
    return Aggregation(coefficients, report={"dropped": float(problem.dropped.sum())})
