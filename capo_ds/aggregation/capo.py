"""CAPO: the aggregate that aligns with every positive sample and opposes no negative one.

Besides the regular case there are degenerate ones. With centre c = g_0 (region "difference") or
c = 0 ("norm"), and f(g) = min_i <g, g_i^+> - rho sum_j max(0, -<g, g_j^->), which g~ maximises:

* R = C ||g_0|| = 0: the ball is the point c, so g~ = c.
* Neither positives nor negatives: f = 0 everywhere; g~ is the point of the ball nearest to g_0,
  which is g_0 itself, or min(1, C) g_0 in the norm ball.
* No negatives: the slack term is absent. Nothing else changes.
* No positives: f is minus the total slack; g~ is the point of the ball that violates least, and the
  one nearest to g_0 if there are several. If no constraint can be met, dg != 0 and it is unique.
* dg = 0 at the optimum: zero lies in the hull of the positives and the cone of the negatives.
  Then max f = <c, dg> = 0, the ball is inactive, and all of {f >= 0} inside it is optimal. f is
  positively homogeneous, so {f >= 0} is a convex cone, and the optimal point nearest to g_0 is
  g_0's projection on it, shrunk into the ball if that is the norm ball (projecting on a cone and
  then on a ball around its apex is projecting on their intersection).
* Duplicated samples, rank-deficient Q: xi is not unique; dg, and so g~, is.
* One sample: if positive, g~ = g_0 + R g_1 / ||g_1||.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from numbers import Real

import numpy as np

from capo_ds.aggregation import solver
from capo_ds.aggregation.problem import Aggregation, GramProblem
from capo_ds.aggregation.program import ConeProgram
from capo_ds.aggregation.semidefinite import semidefinite

# By experiment (docs/mathematics.md, section 4): it gives the hard solution wherever there is one,
# else nearly the least slack, and a higher price changes nothing.
DEFAULT_SLACK_PRICE = 10.0
# A hard program has the solution of an elastic one that leaves no slack. Prices are tried in turn,
# with negatives of one length, which changes nothing in a hard program.
HARD_PRICES = (1e1, 1e3, 1e5, 1e7)
BALL_ROUNDING = 1e-9  # share of the radius by which rounding may take g~ out of its ball
ZERO_SLACK = 1e-7  # relative to R ||g_j|| + |<c, g_j>|
REGIONS = ("difference", "norm")
INFEASIBLE_ANSWERS = ("elastic", "vanilla")


def capo(
    problem: GramProblem,
    radius: float = 0.5,
    slack_price: float = DEFAULT_SLACK_PRICE,
    region: str = "difference",
    on_infeasible: str = "elastic",
    positive_share: float | None = None,
) -> Aggregation:
    """Solve CAPO's cone program and recover g~ = c + R dg / ||dg||.

    The statuses: `optimal`; `infeasible-elastic`, the hard program has no feasible point and g~
    solves the elastic one; `infeasible-vanilla`, likewise but g~ = g_0 as asked; `degenerate`, the
    trust region does not determine g~ (see the module); `fallback`, optimal but found by Clarabel;
    `inaccurate`, the best pair has a relative gap between 1e-7 and 1e-3.

    The report holds, for the program that was solved in the end: `primal` at g~, `dual`, their
    relative `gap`; `slack_total`, `slack_max`, `slack_price`; `hard_feasible`, whether some point
    of the ball violates no constraint; `trust_region_active`; `iterations`, `fallback` (1 if
    Clarabel answered), `seconds`; `gram_shift`, by how much a cosine was changed to make
    the Gram matrix positive semidefinite (rounding of float32; see `semidefinite`). All of it is
    about that matrix.

    g~ lies in the ball whatever the status; in the norm ball `infeasible-vanilla` cannot occur,
    since g = 0 violates nothing.

    Args:
        problem: N samples.
        radius: C >= 0 of the trust region, relative to ||g_0||.
        slack_price: rho > 0, price of violating a negative's constraint; inf is the hard program.
        region: "difference" is ||g - g_0|| <= C ||g_0||, "norm" is ||g|| <= C ||g_0||.
        positive_share: in (0, 1): at least this share of the weights xi is on positives. It takes
            the place of slack_price: rho = (1 - share) / (share n), since sum alpha = 1 and
            sum beta <= n rho.
        on_infeasible: answer of a hard program (price inf) without a feasible point: the elastic
            one at the default price, or g_0 itself.

    Raises:
        ValueError: on an option out of range.
        SolverError: if no solver found an optimal pair.
    """
    if positive_share is not None:
        if slack_price != DEFAULT_SLACK_PRICE:
            raise ValueError("give slack_price or positive_share, which is a price too; not both")
        slack_price = price_of_share(positive_share, int(problem.negative.sum()))
    _validate(radius, slack_price, region, on_infeasible)
    started = time.perf_counter()
    problem, gram_shift = semidefinite(problem)
    setting = _Setting(problem, radius, region)
    program = setting.program(float(slack_price))
    if len(setting.samples) == 0 or program.radius == 0.0 or not program.norms.any():
        answer = _without_direction(setting, program)
    else:
        answer = _with_direction(setting, program, on_infeasible)
    answer.report["gram_shift"] = gram_shift
    answer.report["seconds"] = time.perf_counter() - started
    return answer


def price_of_share(positive_share: float, negatives: int) -> float:
    """The price rho at which the positives keep at least this share of sum xi."""
    if not 0 < positive_share < 1:
        raise ValueError(f"positive_share must be between 0 and 1, got {positive_share}")
    return (1 - positive_share) / (positive_share * max(negatives, 1))


class _Setting:
    """What stays the same whatever the price: samples in program order, centre, radius."""

    def __init__(self, problem: GramProblem, radius: float, region: str) -> None:
        self.problem = problem
        self.radius = radius
        self.region = region
        self.samples = np.concatenate(
            [np.flatnonzero(problem.positive), np.flatnonzero(problem.negative)]
        )
        self.base = problem.average if region == "difference" else np.zeros(problem.count)

    def program(self, price: float, base: np.ndarray | None = None) -> ConeProgram:
        base = self.base if base is None else base
        return ConeProgram(
            gram=self.problem.gram[np.ix_(self.samples, self.samples)],
            linear=(self.problem.gram @ base)[self.samples],
            radius=self.radius * self.problem.vanilla_norm,
            positives=int(self.problem.positive.sum()),
            price=price,
        )

    def spread(self, values: np.ndarray) -> np.ndarray:
        """(N,) from values on the program's K samples."""
        full = np.zeros(self.problem.count)
        full[self.samples] = values
        return full

    def shrunk_into_ball(self, coefficients: np.ndarray) -> np.ndarray:
        """(N,) coefficients of the nearest point of the ball."""
        offset = coefficients - self.base
        length = np.sqrt(max(offset @ self.problem.gram @ offset, 0.0))
        limit = self.radius * self.problem.vanilla_norm
        inside = length <= (1.0 + BALL_ROUNDING) * limit
        return coefficients if inside else self.base + (limit / length) * offset


@dataclass(frozen=True)
class _Solved:
    """A solution, the price it was found at, and whether the hard program has a feasible point."""

    solution: solver.Solution
    program: ConeProgram
    feasible: bool


def _with_direction(setting: _Setting, program: ConeProgram, on_infeasible: str) -> Aggregation:
    hard = bool(np.isinf(program.price))
    harmless = setting.region == "norm" or setting.radius >= 1.0  # 0 is in the ball
    solved = _solve_hard(program, harmless) if hard else _solve_elastic(program, harmless)
    solution, program = solved.solution, solved.program
    coefficients = setting.base + setting.spread(solution.step)
    on_boundary, status = solution.on_boundary, _status(solved)
    if hard and not solved.feasible and on_infeasible == "vanilla":
        coefficients, on_boundary = setting.problem.average.copy(), False
        status = "infeasible-vanilla"
    elif status == "degenerate" and setting.region == "norm":
        coefficients = _nearest_to_vanilla(setting, solved, otherwise=coefficients)
    coefficients = setting.shrunk_into_ball(coefficients)

    products = (setting.problem.gram @ coefficients)[setting.samples]
    dual = program.dual_value(solution.xi)
    gap = float(dual - program.primal_value(products)) / program.cancellation_scale(solution.xi)
    if status in ("optimal", "fallback") and not abs(gap) <= solver.CERTIFIED:
        status = "inaccurate"
    report = _values(program, products) | {
        "dual": dual,
        "gap": gap,
        "iterations": float(solution.iterations),
        "fallback": float(solution.fallback),
        "hard_feasible": float(solved.feasible),
        "trust_region_active": float(on_boundary),
    }
    xi = setting.spread(solution.xi)
    return Aggregation(
        coefficients,
        xi,
        status,
        report,
        base=setting.base,
        average=setting.problem.average,
        radius=setting.radius,
        on_boundary=on_boundary,
    )


def _without_direction(setting: _Setting, program: ConeProgram) -> Aggregation:
    """The ball is a point, or no sample has a gradient that could pull g away from g_0."""
    coefficients = setting.shrunk_into_ball(setting.problem.average.copy())
    products = (setting.problem.gram @ coefficients)[setting.samples]
    feasible = not _violated(program, products)
    if np.isinf(program.price):
        program = replace(program, price=DEFAULT_SLACK_PRICE)
    report = _values(program, products) | {
        "dual": program.primal_value(products),
        "gap": 0.0,
        "iterations": 0.0,
        "fallback": 0.0,
        "hard_feasible": float(feasible),
        "trust_region_active": 0.0,
    }
    xi = np.zeros(setting.problem.count)
    return Aggregation(
        coefficients,
        xi,
        "degenerate",
        report,
        base=setting.base,
        average=setting.problem.average,
        radius=setting.radius,
    )


def _solve_elastic(program: ConeProgram, harmless: bool) -> _Solved:
    """harmless: some point of the ball, like 0, is known to violate nothing."""
    if program.positives == 0:  # only the total slack is minimised: every price gives the same g~
        program = replace(program, price=1.0)
    solution = solver.solve(program, zero_inside=harmless)
    feasible = harmless or not _violated(program, program.products(solution.step))
    return _Solved(solution, program, feasible or solver.hard_feasible(program, solution.xi))


def _solve_hard(program: ConeProgram, harmless: bool) -> _Solved:
    """The elastic program at growing prices, until no slack is left or none can be left out.

    An elastic solution without slack solves the hard program. If the hard program has no feasible
    point, or only ones that need a price beyond 1e7, the first elastic solution is the answer.

    Args:
        harmless: some point of the ball is known to violate nothing: then the last one is.
    """
    first = solved = _solve_elastic(replace(program, price=DEFAULT_SLACK_PRICE), harmless)
    if not _slack_left(solved):
        return solved
    if not solved.feasible:
        return first
    lengths = _lengths_of_negatives(program)
    for price in HARD_PRICES:
        solved = _solve_elastic(replace(_rescaled(program, 1.0 / lengths), price=price), True)
        if not _slack_left(solved):
            break
    else:
        if not harmless:
            return replace(first, feasible=False)
    solution = solved.solution
    weights = replace(solution, xi=solution.xi / lengths, step=solution.step / lengths)
    # At this price the program has that solution, with its slack as it is.
    price = float(max(solved.program.price / lengths[program.positives :].min(), weights.xi.max()))
    return _Solved(weights, replace(program, price=price), feasible=True)


def _slack_left(solved: _Solved) -> bool:
    return _violated(solved.program, solved.program.products(solved.solution.step))


def _lengths_of_negatives(program: ConeProgram) -> np.ndarray:
    """(K,) 1 for positives; for negatives their length in units of the longest gradient."""
    lengths = program.norms / program.norms.max()
    lengths[lengths <= 0.0] = 1.0
    lengths[: program.positives] = 1.0
    return lengths


def _rescaled(program: ConeProgram, factors: np.ndarray) -> ConeProgram:
    """The program with g_i multiplied by `factors` (K,)."""
    gram = program.gram * factors * factors[:, None]
    return replace(program, gram=gram, linear=program.linear * factors)


def _nearest_to_vanilla(setting: _Setting, solved: _Solved, otherwise: np.ndarray) -> np.ndarray:
    """(N,) coefficients of the optimal point of the norm ball nearest to g_0, for dg = 0.

    The solver gives the one nearest to the centre, which is 0. `otherwise`, that one, is kept if
    the projection cannot be resolved in float64.
    """
    problem, xi = setting.problem, solved.solution.xi
    program = setting.program(solved.program.price, problem.average)
    # 0 is optimal, so a ball of twice ||g_0|| does not bind.
    wide = replace(program, radius=2.0 * problem.vanilla_norm)
    solution = solver.solve(wide, guess=solved.solution.sides)
    if solution.on_boundary:
        return otherwise
    nearest = setting.shrunk_into_ball(problem.average + setting.spread(solution.step))
    value = solved.program.primal_value((problem.gram @ nearest)[setting.samples])
    accurate = value >= -solver.CERTIFIED * solved.program.cancellation_scale(xi)
    return nearest if accurate else otherwise


def _violated(program: ConeProgram, products: np.ndarray) -> bool:
    """Whether a constraint of a negative is broken beyond rounding."""
    terms = (program.radius * program.norms + np.abs(program.linear))[program.positives :]
    return bool(np.any(program.slacks(products) > ZERO_SLACK * terms))


def _status(solved: _Solved) -> str:
    solution = solved.solution
    if not solution.certified:
        return "inaccurate"
    if not solution.on_boundary and solver.optimum_is_zero(solved.program, solution.xi):
        return "degenerate"
    if not solved.feasible:
        return "infeasible-elastic"
    return "fallback" if solution.fallback else "optimal"


def _values(program: ConeProgram, products: np.ndarray) -> dict[str, float]:
    slacks = program.slacks(products)
    return {
        "primal": float(program.primal_value(products)),
        "slack_total": float(slacks.sum()),
        "slack_max": float(slacks.max(initial=0.0)),
        "slack_price": program.price,
    }


def _validate(radius: float, slack_price: float, region: str, on_infeasible: str) -> None:
    if not (isinstance(radius, Real) and np.isfinite(radius) and radius >= 0):
        raise ValueError(f"radius must be finite and >= 0, got {radius!r}")
    if not slack_price > 0:
        raise ValueError(f"slack_price must be > 0 (inf allowed), got {slack_price}")
    if region not in REGIONS:
        raise ValueError(f"region must be one of {', '.join(REGIONS)}, got {region!r}")
    if on_infeasible not in INFEASIBLE_ANSWERS:
        choices = ", ".join(INFEASIBLE_ANSWERS)
        raise ValueError(f"on_infeasible must be one of {choices}, got {on_infeasible!r}")
