"""CAPO's program in CVXPY, as dual and as primal, with each solver that benchmarks/dual_solver.py
tries beside ours."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable

import numpy as np

from capo_ds.aggregation import Aggregation, GramProblem
from capo_ds.aggregation.program import ConeProgram
from capo_ds.aggregation.reference import square_root


def cvxpy_runs(
    problem: GramProblem, radius: float, answer: Aggregation
) -> dict[str, tuple[float, float]]:
    """(seconds, disagreement of the objective) of each formulation and solver that answers."""
    program = ConeProgram(
        problem.gram,
        problem.q0,
        radius * problem.vanilla_norm,
        int(problem.positive.sum()),
        answer.report["slack_price"],
    ).normalised()[0]
    root = square_root(program.gram)
    assert answer.xi is not None  # CAPO has a direction
    ours = program.dual_value(answer.xi)
    runs = {}
    for by, (formulation, solver, settings) in CONTESTANTS.items():
        started = time.process_time()
        value = solve_with_cvxpy(formulation(program, root), solver, settings)
        seconds = time.process_time() - started
        if value is not None:
            runs[by] = (seconds, abs(value - ours) / abs(ours))
    return runs


def dual_in_cvxpy(program: ConeProgram, root: np.ndarray):
    """min R ||F' xi|| + q' xi."""
    import cvxpy

    xi = cvxpy.Variable(len(program.linear), nonneg=True)
    alpha, beta = xi[: program.positives], xi[program.positives :]
    objective = program.radius * cvxpy.norm(root.T @ xi) + program.linear @ xi
    whole = cvxpy.Zero(cvxpy.sum(alpha) - 1)
    return cvxpy.Problem(cvxpy.Minimize(objective), [whole, beta <= program.price])


def primal_in_cvxpy(program: ConeProgram, root: np.ndarray):
    """max t - rho sum s in the coordinates of F, where <g, g_i> = (F v + q)_i."""
    import cvxpy

    v, t = cvxpy.Variable(root.shape[1]), cvxpy.Variable()
    s = cvxpy.Variable(program.negatives, nonneg=True)
    products = root @ v + program.linear
    constraints = [
        products[: program.positives] >= t,
        products[program.positives :] >= -s,
        cvxpy.norm(v) <= program.radius,
    ]
    return cvxpy.Problem(cvxpy.Maximize(t - program.price * cvxpy.sum(s)), constraints)


CONTESTANTS: dict[str, tuple[Callable, str, dict[str, float]]] = {
    "Clarabel, dual": (dual_in_cvxpy, "CLARABEL", {}),
    "Clarabel, primal": (primal_in_cvxpy, "CLARABEL", {}),
    "SCS, dual": (
        dual_in_cvxpy,
        "SCS",
        {"eps_abs": 1e-8, "eps_rel": 1e-8, "time_limit_secs": 20.0},
    ),
}


def solve_with_cvxpy(task, solver: str, settings: dict[str, float]) -> float | None:
    import cvxpy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # accuracy is judged by the objective
        try:
            task.solve(solver=solver, **settings)
        except cvxpy.SolverError:
            return None
    return task.value
