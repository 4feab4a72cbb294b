"""Random per-sample gradients of the kinds that occur, and a few that should not."""

from __future__ import annotations

import warnings

import cvxpy
import numpy as np
from hypothesis import strategies as st

from capo_ds.aggregation import GramProblem

FAMILIES = ("orthogonal", "shared", "mixed", "heavy", "low_rank", "conflict", "duplicated")


def gradients(family: str, count: int, seed: int) -> np.ndarray:
    """(N, d) rows g_i, d = 2 N."""
    rng = np.random.default_rng(seed)
    d = 2 * count
    rows = rng.normal(size=(count, d)) / np.sqrt(d)
    mode = rng.normal(size=d) / np.sqrt(d)
    if family == "shared":
        rows += 3.0 * mode
    elif family == "mixed":
        rows += rng.normal(size=(count, 1)) * mode
    elif family == "heavy":
        rows *= np.exp(2.0 * rng.normal(size=(count, 1)))
    elif family == "low_rank":
        rank = max(2, count // 3)
        rows = rng.normal(size=(count, rank)) @ rng.normal(size=(rank, d)) / d
    elif family == "conflict":
        rows[: count // 2] += mode
        rows[count // 2 :] -= 0.9 * mode
    elif family == "duplicated":
        rows = rows[rng.integers(0, max(1, count // 2), size=count)]
    return rows


def problem_of(rows: np.ndarray, positives: int, negatives: int | None = None) -> GramProblem:
    """The first samples positive, the next negative, the rest neutral."""
    index = np.arange(len(rows))
    negatives = len(rows) - positives if negatives is None else negatives
    positive = index < positives
    negative = ~positive & (index < positives + negatives)
    return GramProblem(rows @ rows.T, positive, negative)


@st.composite
def draws(draw: st.DrawFn, most: int = 16) -> tuple[np.ndarray, int]:
    """(rows, number of positives >= 1)."""
    count = draw(st.integers(1, most))
    rows = gradients(draw(st.sampled_from(FAMILIES)), count, draw(st.integers(0, 10**6)))
    return rows, draw(st.integers(1, count))


def primal_by_cvxpy(
    rows: np.ndarray,
    problem: GramProblem,
    radius: float,
    price: float,
    region: str = "difference",
) -> tuple[float | None, np.ndarray | None]:
    """Value and g of the primal program in R^d itself; (None, None) if it is infeasible.

    max min_i <g, g_i^+> - rho sum_j s_j, <g, g_j^-> >= -s_j, s >= 0, ||g - c|| <= C ||g_0||.
    """
    vanilla = problem.average @ rows
    centre = vanilla if region == "difference" else np.zeros_like(vanilla)
    g = cvxpy.Variable(rows.shape[1])
    constraints = [cvxpy.norm(g - centre) <= radius * np.linalg.norm(vanilla)]
    objective: cvxpy.Expression | float = 0.0
    if problem.positive.any():
        objective = cvxpy.min(rows[problem.positive] @ g)
    if problem.negative.any():
        if np.isinf(price):
            constraints.append(rows[problem.negative] @ g >= 0)
        else:
            objective = objective - price * cvxpy.sum(cvxpy.pos(-rows[problem.negative] @ g))
    task = cvxpy.Problem(cvxpy.Maximize(objective), constraints)
    with warnings.catch_warnings():
        # Clarabel seldom reaches so tight a tolerance; the tests compare at 1e-7.
        warnings.simplefilter("ignore", UserWarning)
        task.solve(solver="CLARABEL", tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10)
    if task.status.startswith("infeasible"):
        return None, None
    return float(task.value), g.value


def unit_of(rows: np.ndarray, problem: GramProblem, radius: float) -> float:
    """Magnitude of the objective's terms, against which its error is judged."""
    largest = np.linalg.norm(rows, axis=1).max(initial=0.0)
    return float((1.0 + radius) * problem.vanilla_norm * largest) or 1.0
