"""Primal-dual interior point for the dual of CAPO's cone program.

As a conic program over xi = (alpha, beta) and tau, with the cone's tail dg = sum_i xi_i g_i,

    minimise R tau + q' xi   subject to   1' alpha = 1,  xi >= 0,  beta <= rho,  ||dg|| <= tau.

Its multipliers are the primal program: lam = (z, u) for the bounds, t for the simplex, and
(R, -v) for the cone, with the primal point g = c + v, v = sum_i step_i g_i, ||v|| <= R:

    q_i + <v, g_i> - t 1_P - z_i + u_i = 0,  z, u >= 0:   <g, g_i^+> >= t,  <g, g_j^-> >= -u_j.

So every iterate is a feasible pair and its gap is known. The optimality conditions are relaxed to
s lam = mu for the bounds and sigma o zeta = (K / 2) mu for the cone. The cone is the one curved
constraint and binds at nearly every optimum; with the weight of a single bound the iterates hug it
and take short steps (15-25 iterations where this weight takes 10-15).

An iteration costs one Cholesky factor of Q + diagonal, for a predictor and a corrector (Mehrotra).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.linalg import LinAlgError

from capo_ds.aggregation.bordered import Bordered
from capo_ds.aggregation.lorentz import Lorentz, Scaling
from capo_ds.aggregation.program import ConeProgram, simplex_column

TO_BOUNDARY = 0.99  # share of the way to the boundary that a step may take
CONE_WEIGHT = 0.5  # of the cone's complementarity, in multiples of K
MAX_ITERATIONS = 80
PATIENCE = 15  # iterations without a better gap before giving up


@dataclass(frozen=True)
class Pair:
    """An iterate of `iterates`.

    Attributes:
        xi: (K,) dual point, strictly feasible.
        step: (K,) primal point c + sum_i step_i g_i, the better of the iterate and the recovery.
        gap: relative duality gap of the two.
        free: (K,) bool, samples that seem to stay strictly between their bounds.
        iteration: Cholesky factors taken so far.
    """

    xi: np.ndarray
    step: np.ndarray
    gap: float
    free: np.ndarray
    iteration: int


def iterates(program: ConeProgram) -> Iterator[Pair]:
    """Pairs of falling gap (about tenfold a turn), until float64 or patience is exhausted.

    The caller stops when a gap satisfies it; 1e-9 is nearly always reached.

    Args:
        program: K samples, finite price, R > 0; best scaled so that norms and R are about 1.
    """
    bounds = _Bounds(program)
    point = _start(program, bounds)
    least, since = np.inf, 0
    for iteration in range(MAX_ITERATIONS):
        pair = _pair(program, bounds, point, iteration)
        yield pair
        least, since = (pair.gap, 0) if pair.gap < least else (least, since + 1)
        if since > PATIENCE or not point.inside(bounds):
            return
        try:
            newton = _ConeNewton(program, bounds, point)
        except LinAlgError:  # the multipliers' ratios have left float64
            return
        point = point.advanced(_mehrotra(bounds, point, newton), bounds, program)


class _Bounds:
    """The bounds 0 <= xi and beta <= rho as slacks s = (xi, rho - beta), length K + n."""

    def __init__(self, program: ConeProgram) -> None:
        self.positives = program.positives
        self.count = len(program.linear)
        self.price = program.price

    def slack(self, xi: np.ndarray) -> np.ndarray:
        return np.concatenate([xi, self.price - xi[self.positives :]])

    def slack_change(self, change: np.ndarray) -> np.ndarray:
        """(K + n,) A d for a change d of xi."""
        return np.concatenate([change, -change[self.positives :]])

    def gather(self, values: np.ndarray) -> np.ndarray:
        """(K,) A' v: multipliers (z, u) become z - u."""
        total = values[: self.count].copy()
        total[self.positives :] -= values[self.count :]
        return total

    def hessian(self, program: ConeProgram, weight: float, ratio: np.ndarray) -> np.ndarray:
        """(K, K) weight Q + A' diag(ratio) A."""
        diagonal = ratio[: self.count].copy()
        diagonal[self.positives :] += ratio[self.count :]
        matrix = weight * program.gram
        matrix.flat[:: self.count + 1] += diagonal
        return matrix


@dataclass(frozen=True)
class _Direction:
    """A change of `_Point`; lam, sigma and zeta as there."""

    lam: np.ndarray
    threshold: np.ndarray
    sigma: Lorentz
    zeta: Lorentz


@dataclass(frozen=True)
class _Point:
    """An iterate.

    Attributes:
        lam: (K + n,) multipliers (z, u) of the bounds.
        threshold: (1,) multiplier t of the simplex, the primal min_i <g, g_i^+>; (0,) if m = 0.
        sigma: (tau, dg), its tail's coefficients are xi.
        zeta: (R, -v), the cone's multiplier.
    """

    lam: np.ndarray
    threshold: np.ndarray
    sigma: Lorentz
    zeta: Lorentz

    @property
    def xi(self) -> np.ndarray:
        return self.sigma.tail[0]

    def inside(self, bounds: _Bounds) -> bool:
        """Whether slacks and both cone vectors are in the interior, in float64."""
        return bool(
            np.all(bounds.slack(self.xi) > 0.0)
            and self.sigma.determinant() > 0.0
            and self.zeta.determinant() > 0.0
        )

    def longest_step(self, direction: _Direction, bounds: _Bounds) -> float:
        """Largest length that keeps slacks, multipliers and both cone vectors inside."""
        change = bounds.slack_change(direction.sigma.tail[0])
        return min(
            _to_zero(bounds.slack(self.xi), change),
            _to_zero(self.lam, direction.lam),
            self.sigma.steps_inside(direction.sigma),
            self.zeta.steps_inside(direction.zeta),
        )

    def advanced(self, direction: _Direction, bounds: _Bounds, program: ConeProgram) -> _Point:
        length = min(1.0, TO_BOUNDARY * self.longest_step(direction, bounds))
        sigma = self.sigma + direction.sigma * length
        zeta = self.zeta + direction.zeta * length
        # Products are formed afresh: a sum of increments would drift away from Q a.
        return _Point(
            self.lam + length * direction.lam,
            self.threshold + length * direction.threshold,
            Lorentz(sigma.head, np.stack([sigma.tail[0], program.gram @ sigma.tail[0]])),
            Lorentz(zeta.head, np.stack([zeta.tail[0], program.gram @ zeta.tail[0]])),
        )


def _start(program: ConeProgram, bounds: _Bounds) -> _Point:
    """A strictly feasible pair with g = c, a margin below every product, and tau above ||dg||."""
    linear, positives = program.linear, program.positives
    xi = np.full(len(linear), 1.0 / max(positives, 1))
    xi[positives:] = np.minimum(xi[positives:], program.price / 2)
    tail = np.stack([xi, program.gram @ xi])
    length = np.sqrt(max(tail[0] @ tail[1], 0.0))
    margin = 0.1 * (program.radius * length + np.abs(linear).mean())
    if margin == 0.0:
        margin = program.radius
    lower = np.maximum(linear, 0.0) + margin
    threshold = linear[:positives].min(keepdims=True) - margin if positives else np.zeros(0)
    lower[:positives] = linear[:positives] - threshold
    lam = np.concatenate([lower, (lower - linear)[positives:]])
    mu = float(bounds.slack(xi) @ lam) / len(lam)
    tau = np.sqrt(2 * length**2 + (mu / program.radius) ** 2)
    return _Point(lam, threshold, Lorentz(tau, tail), Lorentz(program.radius, np.zeros_like(tail)))


def _pair(program: ConeProgram, bounds: _Bounds, point: _Point, iteration: int) -> Pair:
    """The point with its certificate: the better of c + v and the recovery c + R dg / ||dg||."""
    xi, products = point.sigma.tail
    step = -point.zeta.tail[0]
    value = program.primal_value(program.linear - point.zeta.tail[1])
    gap = (program.dual_value(xi, products) - value) / program.cancellation_scale(xi)
    if not program.direction_vanishes(xi, products):
        boundary_gap, _ = program.boundary_gap(xi, products)
        if boundary_gap < gap:
            step, gap = program.radius / np.sqrt(xi @ products) * xi, boundary_gap
    inactive = bounds.slack(xi) > point.lam
    free = inactive[: len(xi)].copy()
    free[program.positives :] &= inactive[len(xi) :]
    return Pair(xi, step, gap, free, iteration)


def _mehrotra(bounds: _Bounds, point: _Point, newton: _ConeNewton) -> _Direction:
    """Predictor, then the direction with its centring and second-order correction."""
    slack = bounds.slack(point.xi)
    weight = CONE_WEIGHT * len(point.xi)
    mu = (slack @ point.lam + point.sigma.dot(point.zeta)) / (len(slack) + weight)
    predictor = newton.direction(-slack * point.lam, point.zeta * -1.0)
    reach = min(1.0, point.longest_step(predictor, bounds))
    target = (1.0 - reach) ** 3 * mu

    bend = bounds.slack_change(predictor.sigma.tail[0]) * predictor.lam
    scaling, centre = newton.scaling, newton.centre
    cone_bend = scaling.invert(predictor.sigma).product(scaling.apply(predictor.zeta))
    cone_target = Lorentz(float(weight * target), np.zeros_like(centre.tail))
    cone_change = cone_target - centre.product(centre) - cone_bend
    return newton.direction(
        target - slack * point.lam - bend, scaling.invert(centre.divide_into(cone_change))
    )


class _ConeNewton:
    """Newton's equations at one point, factored once.

    The scaled complementarity of the cone gives zeta's change as r - W^-2 (change of sigma). Its
    head is zero (the head of zeta is the constant R), which expresses the change of tau by that of
    dg; what is left for xi is the Hessian of a radially flat norm,
    weight (Q - 2 p p' / (2 w_0^2 - 1)) with p = Q w, plus the diagonal of the bounds.
    """

    def __init__(self, program: ConeProgram, bounds: _Bounds, point: _Point) -> None:
        self.program, self.bounds, self.point = program, bounds, point
        self.slack = bounds.slack(point.xi)
        self.scaling = Scaling.between(point.sigma, point.zeta)
        self.centre = self.scaling.apply(point.zeta)
        w = self.scaling.w
        self.stretch = 2 * w.head**2 - 1
        self.simplex = simplex_column(program)
        rank_one = 2 * self.scaling.weight / self.stretch
        products = w.tail[1][:, None]
        hessian = bounds.hessian(program, self.scaling.weight, point.lam / self.slack)
        self.system = Bordered(
            hessian,
            columns=np.hstack([self.simplex, rank_one * products]),
            rows=np.hstack([self.simplex, products]),
            corner=1.0,
        )
        simplex_products = self.simplex @ point.threshold
        self.residual = (
            program.linear - point.zeta.tail[1] - simplex_products - bounds.gather(point.lam)
        )
        self.missing = np.append(1.0 - self.simplex.T @ point.xi, 0.0)

    def direction(self, bound_change: np.ndarray, cone_change: Lorentz) -> _Direction:
        """Solve for given changes of s lam and of zeta + W^-2 sigma."""
        w, weight, stretch = self.scaling.w, self.scaling.weight, self.stretch
        right = (
            self.bounds.gather(bound_change / self.slack)
            - self.residual
            + cone_change.tail[1]
            + (2 * w.head * cone_change.head / stretch) * w.tail[1]
        )
        xi, border = self.system.solve(right, self.missing)
        overlap = border[-1]  # w' Q xi
        tau = (cone_change.head / weight + 2 * w.head * overlap) / stretch
        tail = np.stack([xi, self.program.gram @ xi])
        pull = 2 * (overlap - w.head * tau)
        lam = (bound_change - self.point.lam * self.bounds.slack_change(xi)) / self.slack
        return _Direction(
            lam,
            border[:-1],
            Lorentz(tau, tail),
            Lorentz(0.0, cone_change.tail - weight * (tail + pull * w.tail)),
        )


def _to_zero(values: np.ndarray, changes: np.ndarray) -> float:
    """Largest length at which positive values plus length * changes stay nonnegative."""
    shrinking = changes < 0
    return float(np.min(values[shrinking] / -changes[shrinking], initial=np.inf))
