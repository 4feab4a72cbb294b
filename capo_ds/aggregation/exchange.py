"""The dual solved by exchanging whole sets of samples between their bounds and the interior.

With F the samples strictly between their bounds and the others fixed at theirs, the dual is a
problem without inequalities, and its solution has a closed form. With s = ||dg|| / R, optimality on
F is (Q xi)_F / s + q_F = t 1_P and 1' alpha = 1, so xi = v + s u, where

    Q_FF u = -q_F + t_u 1_P,  1' u_P = 0,       Q_FF v = -(Q b)_F + t_v 1_P,  1' (v + b)_P = 1,

b being what is fixed. Then u' Q (v + b) = t_v 1' u_P = 0, so s^2 = ||dg||^2 / R^2 gives

    s^2 = ||v + b||_Q^2 / (R^2 - ||u||_Q^2),

one Cholesky factor of Q_FF. Where the denominator is not positive, the value falls along u.

All samples that leave their bounds go to them, all at a bound whose gradient points inwards become
free, and so on: block principal pivoting (Portugal, Judice and Vicente 1994; Kim and Park 2011 for
nonnegative least squares), also known as the primal-dual active set method. From nearly any start
it ends in some five rounds where Q is well conditioned. Where it does not, the caller goes on
otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg.lapack import dpotrf, dpotrs  # pyright: ignore[reportAttributeAccessIssue]

from capo_ds.aggregation.program import ConeProgram

SOLVED = 1e-10  # relative gap at which to stop
MAX_ROUNDS = 40
PATIENCE = 8  # rounds without fewer exchanges
DAMPING = (1e-13, 1e-12)  # makes Q_FF definite if gradients are duplicated; tried in turn
SLACK = 1e-12  # of a sample's own terms: what counts as a gradient of zero


@dataclass
class Sides:
    """Which samples are free and which at the upper bound; the others are at 0. (K,) bools."""

    free: np.ndarray
    upper: np.ndarray

    @classmethod
    def of(cls, program: ConeProgram, xi: np.ndarray) -> Sides:
        upper = xi >= program.price
        upper[: program.positives] = False
        return cls((xi > 0.0) & ~upper, upper)


def exchange(program: ConeProgram, sides: Sides) -> tuple[np.ndarray | None, float]:
    """The best feasible xi met, and its relative gap with the recovery c + R dg / ||dg||.

    If dg vanishes at one, that is it, with an infinite gap: there is no such recovery.

    Args:
        program: finite price.
        sides: where to start; changed.
    """
    best, best_gap = None, np.inf
    fewest, since = len(program.linear) + 1, 0
    for _ in range(MAX_ROUNDS):
        _keep_a_positive(program, sides)
        face = _Face.solve(program, sides)
        if face is None:
            break
        if face.products is not None:
            xi = _clipped(program, face.xi)
            products = program.gram @ xi
            if program.direction_vanishes(xi, products):
                return xi, np.inf
            gap, _ = program.boundary_gap(xi, products)
            if gap < best_gap:
                best, best_gap = xi, gap
        moved = face.move(program, sides)
        if best_gap <= SOLVED or moved == 0:
            break
        fewest, since = (moved, 0) if moved < fewest else (fewest, since + 1)
        if since > PATIENCE:
            break
    return best, best_gap


@dataclass(frozen=True)
class _Face:
    """The solution with the fixed samples fixed, or the direction along which there is none.

    Attributes:
        xi: (K,) the solution, out of its bounds perhaps; u where there is no solution.
        gradient: (K,) of the dual at it, less the threshold t.
        products: (K,) Q xi; None where there is no solution.
    """

    xi: np.ndarray
    gradient: np.ndarray
    products: np.ndarray | None

    @classmethod
    def solve(cls, program: ConeProgram, sides: Sides) -> _Face | None:
        free = np.flatnonzero(sides.free)
        fixed = np.where(sides.upper, program.price, 0.0)
        pull = program.gram @ fixed if sides.upper.any() else fixed
        system = _FreeSystem.factor(program, free)
        if system is None:
            return None
        u, v = np.zeros_like(fixed), fixed.copy()
        u[free] = system.solve(-program.linear[free], 0.0)
        v[free] = system.solve(-pull[free], 1.0)
        u_products, v_products = program.gram @ u, program.gram @ v
        room = program.radius**2 - u @ u_products
        squared = v @ v_products
        if not (np.isfinite(room) and squared > 0.0):
            return None
        if room <= 0.0:
            return cls(u, np.zeros_like(u), None)
        stretch = np.sqrt(squared / room)
        products = v_products + stretch * u_products
        gradient = program.linear + products / stretch
        positives = free[free < program.positives]
        if len(positives):
            gradient[: program.positives] -= gradient[positives].mean()
        return cls(v + stretch * u, gradient, products)

    def move(self, program: ConeProgram, sides: Sides) -> int:
        """Exchange all that stand on the wrong side; how many did."""
        below = sides.free & (self.xi < 0.0)
        above = sides.free & (self.xi > (program.price if self.products is not None else 0.0))
        above[: program.positives] = False
        noise = SLACK * (program.radius * program.norms + np.abs(program.linear))
        rising = ~sides.free & ~sides.upper & (self.gradient < -noise)
        falling = sides.upper & (self.gradient > noise)
        sides.free = (sides.free & ~below & ~above) | rising | falling
        sides.upper = (sides.upper & ~falling) | above
        return int(np.count_nonzero(below | above | rising | falling))


@dataclass(frozen=True)
class _FreeSystem:
    """Q_FF d = r + t 1_P, 1' d_P = total, with Q_FF factored."""

    factor_: np.ndarray
    ones: np.ndarray
    solved: np.ndarray

    @classmethod
    def factor(cls, program: ConeProgram, free: np.ndarray) -> _FreeSystem | None:
        if len(free) == 0:
            return None
        for damping in DAMPING:
            matrix = program.gram[np.ix_(free, free)]
            matrix.flat[:: len(free) + 1] *= 1.0 + damping
            factor, info = dpotrf(matrix.T, lower=True, clean=False, overwrite_a=True)
            if info == 0:
                break
        else:
            return None
        ones = (free < program.positives).astype(float)
        solved, _ = dpotrs(factor, ones, lower=True)
        return cls(factor, ones, solved)

    def solve(self, right: np.ndarray, total: float) -> np.ndarray:
        plain, _ = dpotrs(self.factor_, right, lower=True)
        unit = self.ones @ self.solved
        if unit == 0.0:
            return plain
        return plain + (total - self.ones @ plain) / unit * self.solved


def _keep_a_positive(program: ConeProgram, sides: Sides) -> None:
    if program.positives and not sides.free[: program.positives].any():
        sides.free[np.argmin(program.linear[: program.positives])] = True


def _clipped(program: ConeProgram, xi: np.ndarray) -> np.ndarray:
    """xi between its bounds, alpha scaled to sum 1."""
    xi = np.maximum(xi, 0.0)
    xi[program.positives :] = np.minimum(xi[program.positives :], program.price)
    if program.positives:
        xi[: program.positives] /= xi[: program.positives].sum()
    return xi
