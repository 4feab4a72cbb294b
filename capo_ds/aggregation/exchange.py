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
it ends in some five rounds where Q is well conditioned. Where it is not, a ridge helps
(`capo_ds.aggregation.ridge`): Q + ridge diag(Q) stands in place of Q in all of the above.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from capo_ds.aggregation.free_system import FreeSystems
from capo_ds.aggregation.program import ConeProgram

SOLVED = 1e-10  # relative gap at which to stop
MAX_ROUNDS = 40
PATIENCE = 3  # rounds without fewer exchanges
PACE = 0.7  # of the exchanges of four rounds before, the larger of two, that may be left
# Of the first exchanges, from the third round on: then nothing is gained. Of eight families of
# 2048 samples those that came to an end stayed below 0.82; most of the others passed 0.85.
BACK = 0.85
FEW = 50  # exchanges that may take their time
LEAST_RIDGE = 1e-13  # makes Q_FF definite if gradients are duplicated
SLACK = 1e-12  # of a sample's own terms: what counts as a gradient of zero
ROUNDING = 4 * np.finfo(float).eps  # of Q dg, in units of its terms


class Bounded(Protocol):
    """Samples with bounds, positives first; the negatives' upper one is the price."""

    @property
    def positives(self) -> int: ...

    @property
    def price(self) -> float: ...


@dataclass
class Sides:
    """Which samples are free and which at the upper bound; the others are at 0. (K,) bools."""

    free: np.ndarray
    upper: np.ndarray

    @classmethod
    def worst_aligned(cls, program: ConeProgram) -> Sides:
        """Free are the halves of the positives and of the negatives with the least <c, g_i>."""
        free = np.zeros(len(program.linear), bool)
        for start, end in ((0, program.positives), (program.positives, len(free))):
            order = np.argsort(program.linear[start:end], kind="stable")
            free[start + order[: (end - start + 1) // 2]] = True
        return cls(free, np.zeros_like(free))

    def copy(self) -> Sides:
        return Sides(self.free.copy(), self.upper.copy())


@dataclass(frozen=True)
class Exchanged:
    """What `exchange` came to.

    Attributes:
        xi: (K,) the best feasible xi met with dg != 0; None if there was none.
        gap: relative gap of xi with its recovery c + R dg / ||dg||.
        face: the last face, if all samples were on their right side there.
        rounds: Cholesky factors taken.
    """

    xi: np.ndarray | None
    gap: float
    face: Face | None
    rounds: int


def exchange(program: ConeProgram, sides: Sides) -> Exchanged:
    """Exchange until the gap is closed, no sample is on its wrong side, or it leads nowhere.

    Args:
        program: finite price.
        sides: where to start; changed.
    """
    best, gap, settled, count = None, np.inf, None, 0
    for face, moved in faces(program, sides, LEAST_RIDGE):
        count += 1
        best, gap = min((best, gap), _recovered(program, face), key=lambda pair: pair[1])
        if moved == 0:
            settled = face
        if gap <= SOLVED:
            break
    if settled and gap > SOLVED:
        face = Face.solve(program, sides, FreeSystems(program, LEAST_RIDGE), refined=True)
        count += 1
        best, gap = min((best, gap), _recovered(program, face), key=lambda pair: pair[1])
    return Exchanged(best, gap, settled, count)


def _recovered(program: ConeProgram, face: Face | None) -> tuple[np.ndarray | None, float]:
    """xi of the face between its bounds, if dg != 0 there, and its gap with the recovery."""
    if face is None or not face.bounded or face.apex:
        return None, np.inf
    xi = _clipped(program, face.xi)
    products = program.gram @ xi
    if program.direction_vanishes(xi, products):
        return None, np.inf
    return xi, program.boundary_gap(xi, products)[0]


def faces(program: ConeProgram, sides: Sides, ridge: float) -> Iterator[tuple[Face, int]]:
    """Faces solved in turn, each with how many samples were on its wrong side.

    They are exchanged before the face is yielded. The last is that without any, if one comes
    before patience, or definiteness in float64, is lost.
    """
    systems = FreeSystems(program, ridge)

    def solve() -> Face | None:
        _keep_a_positive(program, sides)
        return Face.solve(program, sides, systems)

    return exchanging(program, sides, solve)


def exchanging(
    program: Bounded, sides: Sides, solve: Callable[[], Face | None]
) -> Iterator[tuple[Face, int]]:
    """`faces`, with the solution of the face of `sides` given."""
    counts: list[int] = []
    for _ in range(MAX_ROUNDS):
        face = solve()
        if face is None:
            return
        moved = face.move(program, sides)
        yield face, moved
        if moved == 0:
            return
        if face.bounded:
            counts.append(moved)
            if _stalled(counts):
                return


def _stalled(counts: list[int]) -> bool:
    """Whether exchanges, counted in bounded rounds, have ceased to fall, or fall too slowly."""
    since = len(counts) - 1 - int(np.argmin(counts))
    slow = len(counts) >= 6 and max(counts[-2:]) > PACE * max(counts[-6:-4])
    back = len(counts) >= 3 and counts[-1] > BACK * counts[0]
    return since > PATIENCE or ((slow or back) and counts[-1] > FEW)


@dataclass(frozen=True)
class Face:
    """The solution with the fixed samples fixed, or the direction along which there is none.

    Attributes:
        xi: (K,) the solution, out of its bounds perhaps; u where there is no solution.
        gradient: (K,) of the dual at it, less the threshold t.
        noise: (K,) what counts as a gradient of zero.
        bounded: whether there is a solution.
        apex: no positives, and none of the negatives at the price: then dg = 0 solves the dual, and
            xi is u, of which c + sum_i u_i g_i is the projection of c on the face.
    """

    xi: np.ndarray
    gradient: np.ndarray
    noise: np.ndarray
    bounded: bool = True
    apex: bool = False

    @classmethod
    def solve(
        cls, program: ConeProgram, sides: Sides, systems: FreeSystems, refined: bool = False
    ) -> Face | None:
        """None if Q_FF + ridge is not positive definite in float64.

        Args:
            refined: take the ridge out by a proximal step. Where Q_FF is singular in float64 that
                leads away from the smallest solution, and out of the bounds.
        """
        fixed = np.where(sides.upper, program.price, 0.0)
        pull = program.gram @ fixed if sides.upper.any() else np.zeros_like(fixed)
        rights, totals = np.stack([-program.linear, -pull]), np.array([0.0, 1.0])
        solved = systems.solve(sides.free, rights, totals)
        if solved is None:
            return None
        own = systems.own
        if refined:
            solved, own = systems.solve(sides.free, rights + own * solved, totals), 0.0
            if solved is None:
                return None
        solved[1] += fixed
        u, v = solved
        u_products, v_products = solved @ program.gram + own * solved
        room = program.radius**2 - u @ u_products
        squared = float(v @ v_products)
        noise = SLACK * (program.radius * program.norms + np.abs(program.linear))
        if not np.isfinite(room):
            return None
        if room <= 0.0:
            return cls(u, np.zeros_like(u), noise, bounded=False)
        if squared <= 0.0:
            apex = program.positives == 0 and not sides.upper.any()
            return cls(u, program.linear + u_products, noise, apex=True) if apex else None
        stretch = np.sqrt(squared / room)
        xi = v + stretch * u
        gradient = program.linear + u_products + v_products / stretch
        positives = np.flatnonzero(sides.free[: program.positives])
        if len(positives):
            gradient[: program.positives] -= gradient[positives].mean()
        rounding = ROUNDING * program.norms * float(np.abs(xi) @ program.norms) / stretch
        return cls(xi, gradient, noise + rounding)

    def move(self, program: Bounded, sides: Sides) -> int:
        """Exchange all that stand on the wrong side; how many did."""
        limit = program.price if self.bounded else 0.0
        below = sides.free & (self.xi < 0.0)
        above = sides.free & (self.xi > (np.inf if self.apex else limit))
        above[: program.positives] = False
        rising = ~sides.free & ~sides.upper & (self.gradient < -self.noise)
        falling = sides.upper & (self.gradient > self.noise)
        sides.free = (sides.free & ~below & ~above) | rising | falling
        sides.upper = (sides.upper & ~falling) | above
        return int(np.count_nonzero(below | above | rising | falling))


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
