"""Solve a cone program with a certificate: the interior point first, Clarabel when it falls short.

The answer is a pair: the dual xi and the primal point c + sum_i step_i g_i, with the relative gap
between their values.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from capo_ds.aggregation import interior_point, reference
from capo_ds.aggregation.program import ConeProgram

CERTIFIED = 1e-7  # relative gap of an optimal answer; the interior point aims at 1e-9
USABLE = 1e-3  # worse than this is no answer


class SolverError(RuntimeError):
    """Neither the interior point nor Clarabel came near an optimal pair."""


@dataclass(frozen=True)
class Solution:
    """A dual and a primal point of one program.

    Attributes:
        xi: (K,) feasible dual weights.
        step: (K,) g = c + sum_i step_i g_i, a point of the ball.
        on_boundary: the ball is active and dg != 0, so step = R xi / ||dg||.
        gap: dual minus primal value, divided by the scale of the terms in the dual.
        iterations: of the interior point.
        fallback: Clarabel gave the answer.
    """

    xi: np.ndarray
    step: np.ndarray
    on_boundary: bool
    gap: float
    iterations: int
    fallback: bool


def solve(program: ConeProgram) -> Solution:
    """The optimal pair of a program with R > 0; the primal point nearest to c if dg = 0.

    Raises:
        SolverError: if no pair with a relative gap below 1e-3 was found.
    """
    point = interior_point.solve(program)
    solution = _recover(program, point.xi, point.step, point.iterations)
    if solution.gap > CERTIFIED:
        solution = _fall_back(program, solution)
    if not solution.gap <= USABLE:
        raise SolverError(
            f"relative duality gap {solution.gap:.1e} after {solution.iterations} iterations and "
            "Clarabel; is the Gram matrix positive semidefinite?"
        )
    return solution


def hard_feasible(program: ConeProgram) -> bool:
    """Whether some point of the ball violates no negative's constraint (Farkas, by the solver)."""
    sub = program.feasibility_program()
    if np.all(sub.linear >= 0.0):  # the centre itself
        return True
    solution = solve(sub)
    return sub.dual_value(solution.xi) >= -CERTIFIED * sub.cancellation_scale(solution.xi)


def nearest(program: ConeProgram, value: float, scale: float) -> np.ndarray | None:
    """(K,) step to the point nearest to c at which the primal objective reaches its maximum.

    For large mu the proximal point argmax_g f(g) - ||g - c||^2 / (2 mu) of the polyhedral f *is*
    the maximiser nearest to c (exact regularisation), and its dual is
    min_xi mu/2 xi' Q xi + q' xi with g = c + mu dg. So mu grows until f(g) reaches `value`.
    """
    norms = np.sqrt(np.maximum(np.diag(program.gram), 0.0))
    unit = program.radius / norms.mean()
    for mu in (1e1, 1e2, 1e3, 1e4, 1e5):
        point = interior_point.solve(program, fixed_lam=1.0 / (mu * unit))
        if program.primal_value(program.products(point.step)) >= value - CERTIFIED * scale:
            return point.step
    return None


def _recover(
    program: ConeProgram, xi: np.ndarray, step: np.ndarray, iterations: int, fallback: bool = False
) -> Solution:
    """The primal point that belongs to xi: on the boundary, or nearest to c if dg = 0."""
    scale = program.cancellation_scale(xi) or 1.0
    on_boundary = not program.direction_vanishes(xi)
    if on_boundary:
        step = program.boundary_step(xi)
    gap = program.gap(xi, step) / scale
    return Solution(xi, step, on_boundary, gap, iterations, fallback)


def _fall_back(program: ConeProgram, solution: Solution) -> Solution:
    """Clarabel's answer, if it has the smaller gap."""
    xi = reference.solve_dual(program)
    if xi is None:
        return solution
    other = _recover(program, xi, solution.step, solution.iterations, fallback=True)
    return other if other.gap < solution.gap else replace(solution, fallback=False)
