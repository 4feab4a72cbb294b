"""Newton's method on the dual's active set: from an approximate xi to one exact to rounding.

The interior point's primal point is accurate, its xi only to the square root of the gap, and
g~ = c + R dg / ||dg|| is made from xi. With F the samples strictly between their bounds, the
optimal xi satisfies, with p = (Q xi)_F and L = ||dg||,

    (R / L) (Q xi)_F + q_F = t 1_P,    1' alpha = 1,

whose Jacobian is (R / L)(Q_FF - p p' / L^2). Samples that Newton pushes over a bound stay at it;
samples at a bound whose gradient points inwards are freed. Steps are halved until the dual value
falls: with many samples changing sides at once, full steps can cycle.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import LinAlgError

from capo_ds.aggregation.bordered import Bordered
from capo_ds.aggregation.program import ConeProgram, simplex_column

POLISHED = 1e-11  # relative gap at which to stop
MAX_STEPS = 15
MAX_HALVINGS = 6
# Makes Q_FF definite if gradients are duplicated. Newton's fixed point does not depend on it.
DAMPING = 1e-13


def polish(program: ConeProgram, xi: np.ndarray, free: np.ndarray) -> tuple[np.ndarray, float]:
    """Best feasible xi met, and its relative gap with the recovery c + R dg / ||dg||.

    Args:
        program: finite price.
        xi: (K,) approximate solution; samples outside `free` are moved to their nearer bound.
        free: (K,) bool, guess of the samples strictly between their bounds.
    """
    upper = np.full(len(xi), program.price)
    upper[: program.positives] = np.inf
    best, best_gap = xi, np.inf
    xi = np.where(free, xi, np.where(xi > upper / 2, upper, 0.0))
    xi = _feasible(program, xi, upper)
    products = program.gram @ xi
    for _ in range(MAX_STEPS):
        if not np.all(np.isfinite(products)) or program.direction_vanishes(xi, products):
            break
        try:
            change, threshold = _newton(program, xi, products, free)
        except LinAlgError:
            break
        xi, products = _descend(program, xi, products, change, upper)
        if not np.all(np.isfinite(products)) or program.direction_vanishes(xi, products):
            break
        gap, aligned = program.boundary_gap(xi, products)
        if gap < best_gap:
            best, best_gap = xi, gap
        if gap <= POLISHED:
            break
        gradient = aligned - threshold
        inwards = np.where(xi <= 0.0, gradient < 0.0, gradient > 0.0)
        free = ((xi > 0.0) & (xi < upper)) | inwards
    return best, best_gap


def _descend(
    program: ConeProgram,
    xi: np.ndarray,
    products: np.ndarray,
    change: np.ndarray,
    upper: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The longest of the steps 1, 1/2, 1/4, ... after which the dual value is not higher.

    The last of them is taken if none is: close to the solution the value does not tell.
    """
    before = program.dual_value(xi, products)
    allowed = before + 1e-12 * abs(before)
    moved, moved_products = xi, products
    for halvings in range(MAX_HALVINGS):
        moved = _feasible(program, xi + 0.5**halvings * change, upper)
        moved_products = program.gram @ moved
        if program.dual_value(moved, moved_products) <= allowed:
            break
    return moved, moved_products


def _feasible(program: ConeProgram, xi: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """xi between its bounds, alpha scaled to sum 1 (NaN if nothing of it is left)."""
    xi = np.clip(xi, 0.0, upper)
    if program.positives:
        total = xi[: program.positives].sum()
        xi[: program.positives] *= 1.0 / total if total > 0.0 else np.nan
    return xi


def _newton(
    program: ConeProgram, xi: np.ndarray, products: np.ndarray, free: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(K,) full step, zero outside the free samples; also t 1_P (K,)."""
    squared = float(xi @ products)
    unit = np.sqrt(max(squared, 0.0)) / program.radius  # L / R
    simplex = simplex_column(program)
    if not simplex[free].any():
        simplex = simplex[:, :0]
    border = np.hstack([simplex[free], products[free, None]])
    matrix = program.gram[np.ix_(free, free)]
    matrix.flat[:: len(matrix) + 1] += DAMPING * (1.0 + np.diag(matrix))
    missing = np.append(1.0 - simplex.T @ xi, 0.0)
    system = Bordered(matrix, border, border, corner=squared)
    change = np.zeros(len(xi))
    change[free], shift = system.solve(-products[free] - unit * program.linear[free], missing)
    return change, simplex @ shift[:-1] / unit
