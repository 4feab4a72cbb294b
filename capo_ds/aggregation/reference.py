"""The dual solved by CVXPY: what checks the fast solver, and the fallback behind it."""

from __future__ import annotations

import warnings

import numpy as np

from capo_ds.aggregation.program import ConeProgram

TIGHT_CLARABEL = {
    "tol_gap_abs": 1e-11,
    "tol_gap_rel": 1e-11,
    "tol_feas": 1e-11,
}


def solve_dual(
    program: ConeProgram, solver: str = "CLARABEL", **settings: float
) -> np.ndarray | None:
    """(K,) xi that minimises R ||F' xi|| + q' xi, with F F' = Q; None if the solver finds none.

    Args:
        program: K samples; rho = inf leaves beta without an upper bound.
        solver: a name from `cvxpy.installed_solvers()`.
        settings: passed on to the solver; Clarabel's default here is a tight tolerance.
    """
    import cvxpy

    count, positives = len(program.linear), program.positives
    xi = cvxpy.Variable(count, nonneg=True)
    constraints = []
    if positives:
        constraints.append(cvxpy.sum(xi[:positives]) == 1)
    if program.negatives and np.isfinite(program.price):
        constraints.append(xi[positives:] <= program.price)
    length = cvxpy.norm(square_root(program.gram).T @ xi)
    problem = cvxpy.Problem(
        cvxpy.Minimize(program.radius * length + program.linear @ xi), constraints
    )
    if solver == "CLARABEL":
        settings = TIGHT_CLARABEL | settings
    try:
        with warnings.catch_warnings():
            # "Solution may be inaccurate": the caller judges that by the duality gap.
            warnings.simplefilter("ignore", UserWarning)
            problem.solve(solver=solver, **settings)
    except cvxpy.SolverError:
        return None
    if xi.value is None:
        return None
    return feasible(program, xi.value)


def square_root(gram: np.ndarray) -> np.ndarray:
    """(K, r) F with F F' = Q, r the numerical rank: the eigenvectors scaled by sqrt(eigenvalue)."""
    values, vectors = np.linalg.eigh(gram)
    kept = values > len(values) * np.finfo(float).eps * max(values[-1], 0.0)
    if not kept.any():
        return np.zeros((len(values), 1))
    return vectors[:, kept] * np.sqrt(values[kept])


def feasible(program: ConeProgram, xi: np.ndarray) -> np.ndarray:
    """The nearest xi, up to rounding, that satisfies the dual's constraints exactly."""
    xi = np.maximum(xi, 0.0)
    positives = program.positives
    if positives:
        xi[:positives] /= xi[:positives].sum()
    xi[positives:] = np.minimum(xi[positives:], program.price)
    return xi
