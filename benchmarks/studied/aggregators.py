"""Aggregators of the study that are no setting of capo_ds: what they isolate stands with each.

Each maps a `GramProblem` to coefficients (N,), and is named in a config as `file.py:function`.
"""

from __future__ import annotations

import numpy as np

from capo_ds.aggregation import GramProblem, aggregate


def _rescaled(problem: GramProblem, name: str, **options: float | str) -> np.ndarray:
    """g~ of an aggregator at the length of g_0: its direction without its length."""
    result = aggregate(name, problem, **options).coefficients
    norm = np.sqrt(max(result @ problem.gram @ result, 0.0))
    return result * (problem.vanilla_norm / norm if norm > 0 else 0.0)


def capo1_rescaled(problem: GramProblem) -> np.ndarray:
    return _rescaled(problem, "capo", radius=1.0)


def ball_rescaled(problem: GramProblem) -> np.ndarray:
    return _rescaled(problem, "capo", radius=1.0, region="norm")
