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


def norms_clipped(problem: GramProblem) -> np.ndarray:
    """Mean of the gradients, each clipped at the median norm of those with an advantage."""
    return problem.vanilla * np.minimum(1.0, _median(problem) * _inverse_norms(problem))


def norms_unit(problem: GramProblem) -> np.ndarray:
    """Mean of unit gradients, at the median norm of those with an advantage."""
    scale = _median(problem) * _inverse_norms(problem)
    return problem.vanilla * np.where(problem.positive | problem.negative, scale, 1.0)


def _median(problem: GramProblem) -> float:
    signed = problem.norms[problem.positive | problem.negative]
    return float(np.median(signed)) if len(signed) else 0.0


def _inverse_norms(problem: GramProblem) -> np.ndarray:
    norms = problem.norms
    return np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)


def _scaled(problem: GramProblem, coefficients: np.ndarray, radius: float) -> np.ndarray:
    """CAPO's coefficients on D Q D, D = diag(scale): c_i = scale_i c'_i."""
    weights = problem.vanilla
    scale = np.divide(coefficients, weights, out=np.ones_like(weights), where=weights != 0)
    scaled = GramProblem(
        scale[:, None] * problem.gram * scale, problem.positive, problem.negative, weights
    )
    return scale * aggregate("capo", scaled, radius=radius).coefficients


def capo05_clipped(problem: GramProblem) -> np.ndarray:
    return _scaled(problem, norms_clipped(problem), 0.5)


def capo05_unit(problem: GramProblem) -> np.ndarray:
    return _scaled(problem, norms_unit(problem), 0.5)


def capo1_unit(problem: GramProblem) -> np.ndarray:
    return _scaled(problem, norms_unit(problem), 1.0)
