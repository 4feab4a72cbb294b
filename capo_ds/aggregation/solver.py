"""Solve a cone program with a certificate: the interior point first, Clarabel where it falls short.

The answer is a pair, the dual xi and the primal point c + sum_i step_i g_i. The gap between their
values bounds the error of both, whoever found them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from capo_ds.aggregation import interior_point, reference
from capo_ds.aggregation.exchange import Sides, exchange
from capo_ds.aggregation.polish import polish
from capo_ds.aggregation.program import ConeProgram

CERTIFIED = 1e-7  # relative gap of an optimal answer
POLISH_FROM = (1e-2, 1e-5, 1e-8)  # gaps at which the active set of an iterate is tried
POLISHED = 1e-9  # gap that a polished answer must have to end the iteration
CLOSE = 1e-2  # gap from which an exchanged answer is worth polishing
ACTIVE = 1e-6  # Clarabel's weights below this share of the largest are at their bound
USABLE = 1e-3  # with more than this there is no answer
DIRECT = 32  # up to this many samples the interior point starts at once
FEW = 16  # positives, or negatives, that are never halved further
WORKING_SET = 64  # samples that a working set takes in at a time, at least
NEARLY_ALL = 0.8  # a working set of more than this share of the samples is not worth it
PROXIMAL_STEPS = (1e1, 1e2, 1e3, 1e4, 1e5)  # mu of `nearest`, where norms and R are about 1


class SolverError(RuntimeError):
    """Neither the interior point nor Clarabel came near an optimal pair."""


@dataclass(frozen=True)
class Solution:
    """A dual and a primal point of one program.

    Attributes:
        xi: (K,) feasible dual weights.
        step: (K,) g = c + sum_i step_i g_i, a point of the ball.
        on_boundary: step is R xi / ||dg||, with dg != 0.
        gap: relative duality gap, see `ConeProgram.gap`.
        iterations: of the interior point, at all sizes together.
        fallback: Clarabel gave the answer.
    """

    xi: np.ndarray
    step: np.ndarray
    on_boundary: bool
    gap: float
    iterations: int
    fallback: bool

    @property
    def certified(self) -> bool:
        return abs(self.gap) <= CERTIFIED


def solve(program: ConeProgram) -> Solution:
    """An optimal pair of a program with R > 0, a finite price and some g_i != 0.

    Where dg = 0, the primal point is the optimal one nearest to c; see `nearest`.

    Raises:
        SolverError: if no pair with a relative gap below 1e-3 was found.
    """
    scaled, step_unit = program.normalised()
    solution = _staged(scaled)
    if not solution.certified and _indefinite(scaled.gram):
        scaled = replace(scaled, gram=_nearest_semidefinite(scaled.gram))
        solution = _staged(scaled)
    if not solution.certified:
        solution = _fall_back(scaled, solution)
    if not abs(solution.gap) <= USABLE:
        raise SolverError(
            f"relative duality gap {solution.gap:.1e} after {solution.iterations} iterations and "
            "Clarabel: check that the Gram matrix is finite and positive semidefinite"
        )
    return replace(solution, step=step_unit * solution.step)


def hard_feasible(program: ConeProgram, xi: np.ndarray) -> bool:
    """Whether some point of the ball violates no negative's constraint.

    Args:
        program: its price plays no part.
        xi: (K,) dual weights of an elastic solution; their beta often proves infeasibility.
    """
    violation = program.feasibility_program()
    if np.all(violation.linear >= 0.0):  # the centre itself
        return True
    beta = xi[program.positives :]
    if _proves_infeasible(violation, beta):
        return False
    if not violation.norms.any():
        return True
    return not _proves_infeasible(violation, solve(violation).xi)


def nearest(program: ConeProgram, scale: float) -> np.ndarray | None:
    """(K,) step from c to the nearest g with min_i <g, g_i^+> - rho sum_j s_j >= 0; or None.

    This is the projection on a convex cone, in which the optimal points lie where dg = 0. For
    large mu the proximal point argmax_g f(g) - ||g - c||^2 / (2 mu) of the piecewise linear f *is*
    its maximiser nearest to c (exact regularisation), so mu grows until f(g) is 0. Few samples
    bind there: a working set of them is grown by those that its solution violates.

    Args:
        program: only gram, linear = <c, g_i>, positives and price count.
        scale: magnitude in whose terms f(g) must be zero, in the unit of linear.
    """
    scaled, step_unit = program.normalised()
    tolerance = CERTIFIED * scale * scaled.radius * step_unit / program.radius**2
    count = len(program.linear)
    products, kept, step = scaled.linear, np.zeros(0, int), np.zeros(count)
    steps = list(PROXIMAL_STEPS)
    while scaled.primal_value(products) < -tolerance:
        violated = _most_violated(scaled, products, 0.0, _batch(kept))
        grown = np.union1d(kept, violated)
        if len(grown) == len(kept):
            return None
        kept, step = grown, np.zeros(count)
        part = _with_zero(scaled.restricted(kept))
        while True:
            part_step = interior_point.proximal(part, steps[0])
            enough = part.primal_value(part.products(part_step)) >= -tolerance / 2
            if enough or len(steps) == 1:
                break
            steps.pop(0)
        step[kept] = part_step[len(part_step) - len(kept) :]
        products = scaled.products(step)
    return step_unit * step


def _with_zero(program: ConeProgram) -> ConeProgram:
    """The program with a zero gradient among the positives, first: its f is min(f, 0) at most.

    Of all samples f is 0 at its best, of a part of them it may be more, and the proximal point
    would strive for that.
    """
    if program.positives == 0:
        return program
    gram = np.pad(program.gram, ((1, 0), (1, 0)))
    linear = np.append(0.0, program.linear)
    return replace(program, gram=gram, linear=linear, positives=program.positives + 1)


def _most_violated(
    program: ConeProgram, products: np.ndarray, threshold: float, count: int
) -> np.ndarray:
    """Up to `count` samples that spoil the value at a point, those of the least cosine first:
    negatives with <g, g_i> < 0, positives with <g, g_i> < threshold."""
    limits = np.zeros(len(products))
    limits[: program.positives] = threshold
    cosines = (products - limits) / np.maximum(program.norms, np.finfo(float).tiny)
    order = np.argsort(cosines, kind="stable")[:count]
    return order[cosines[order] < 0.0]


def _batch(kept: np.ndarray) -> int:
    """How many samples a working set takes in at a time."""
    return max(WORKING_SET, len(kept) // 2)


def optimum_is_zero(program: ConeProgram, xi: np.ndarray) -> bool:
    """Whether the optimal value vanishes to working precision, as it does where dg = 0."""
    return abs(program.dual_value(xi)) <= CERTIFIED * program.cancellation_scale(xi)


def _proves_infeasible(violation: ConeProgram, beta: np.ndarray) -> bool:
    """R ||sum_j beta_j g_j^-|| + beta' q^- < 0, beyond rounding."""
    return violation.dual_value(beta) < -CERTIFIED * violation.magnitude(beta)


def _staged(program: ConeProgram) -> Solution:
    """Sets of samples exchanged; else the same from a smaller program; else the interior point.

    At the optimum most constraints are slack, or most bind: exchanges find out which in a few
    rounds. Where Q is too ill-conditioned for them, half of the samples, those that c serves best,
    is left out, recursively, and the result taken up. Every attempt ends in a certified pair or
    counts for nothing.
    """
    if len(program.linear) <= DIRECT:
        return _interior_point(program)
    kept = _worst_aligned(program)
    worst = np.zeros(len(program.linear), bool)
    worst[kept] = True
    solution = _exchanged(program, Sides(worst, np.zeros_like(worst)), 0)
    if solution:
        return solution
    coarse = _staged(program.restricted(kept))
    solution = None
    if coarse.on_boundary:
        xi = np.zeros(len(program.linear))
        xi[kept] = coarse.xi
        solution = _exchanged(program, Sides.of(program, xi), coarse.iterations)
    return solution or _grown(program, kept, coarse)


def _grown(program: ConeProgram, kept: np.ndarray, coarse: Solution) -> Solution:
    """The solution from that of the samples `kept`, by adding those that its primal point violates.

    Each round costs the interior point of a part of the program; the whole comes last.
    """
    spent, count = coarse.iterations, len(program.linear)
    while True:
        xi, step = np.zeros(count), np.zeros(count)
        xi[kept], step[kept] = coarse.xi, coarse.step
        whole = replace(coarse, xi=xi, step=step, gap=program.gap(xi, step), iterations=spent)
        if not (whole.certified or whole.on_boundary) and optimum_is_zero(program, xi):
            whole = _projected(program, xi, step, spent, fallback=False)
        if whole.certified:
            return whole
        if whole.on_boundary:
            xi, gap = polish(program, xi, _between_bounds(program, xi, margin=0.0))
            if gap <= POLISHED and not optimum_is_zero(program, xi):
                return _recover(program, xi, program.boundary_step(xi), spent, fallback=False)
        products = program.products(whole.step)
        aligned = products[kept[kept < program.positives]].min(initial=np.inf)
        violated = _most_violated(program, products, aligned, _batch(kept))
        grown = np.union1d(kept, violated)
        if len(grown) == len(kept) or len(grown) > NEARLY_ALL * count:
            break
        kept = grown
        coarse = _interior_point(program.restricted(kept))
        spent += coarse.iterations
    solution = _interior_point(program)
    return replace(solution, iterations=spent + solution.iterations)


def _exchanged(program: ConeProgram, sides: Sides, spent: int) -> Solution | None:
    """A polished answer of `exchange`, if it comes to one."""
    xi, gap = exchange(program, sides)
    if POLISHED < gap <= CLOSE:
        xi, gap = polish(program, xi, _between_bounds(program, xi, margin=0.0))
    if xi is not None and optimum_is_zero(program, xi):
        # dg may be zero: then not any optimal point counts, but the nearest to c.
        if not program.direction_vanishes(xi):
            return None
        solution = _projected(program, xi, np.zeros_like(xi), spent, fallback=False)
        return solution if solution.certified else None
    if not gap <= POLISHED:
        return None
    return _recover(program, xi, program.boundary_step(xi), spent, fallback=False)


def _worst_aligned(program: ConeProgram) -> np.ndarray:
    """Sorted indices of the half of the positives and of the negatives with the least <c, g_i>."""
    halves = []
    for start, end in ((0, program.positives), (program.positives, len(program.linear))):
        order = np.argsort(program.linear[start:end], kind="stable")
        halves.append(start + order[: max(FEW, (end - start) // 2)])
    return np.sort(np.concatenate(halves))


def _between_bounds(program: ConeProgram, xi: np.ndarray, margin: float) -> np.ndarray:
    """(K,) bool, samples with 0 < xi_i < upper bound, relative to the largest by `margin`."""
    upper = np.full(len(xi), program.price)
    upper[: program.positives] = np.inf
    return (xi > margin * xi.max()) & (xi < upper * (1.0 - margin))


def _interior_point(program: ConeProgram) -> Solution:
    """Interior-point steps until Newton on the active set finishes, or the best pair they reach."""
    best: interior_point.Pair | None = None
    attempts = list(POLISH_FROM)
    for pair in interior_point.iterates(program):
        if best is None or pair.gap < best.gap:
            best = pair
        if pair.gap > attempts[0]:
            continue
        xi, gap = polish(program, pair.xi, pair.free)
        if gap <= POLISHED:
            return _recover(program, xi, pair.step, pair.iteration, fallback=False)
        attempts.pop(0)
        if not attempts:
            break
    return _recover(program, best.xi, best.step, best.iteration, fallback=False)


def _fall_back(program: ConeProgram, solution: Solution) -> Solution:
    """Clarabel's answer, polished, if it has the smaller gap."""
    xi = reference.solve_dual(program)
    if xi is None:
        return solution
    polished, gap = polish(program, xi, _between_bounds(program, xi, margin=ACTIVE))
    xi = polished if gap <= CERTIFIED else xi
    other = _recover(program, xi, solution.step, solution.iterations, fallback=True)
    return other if abs(other.gap) < abs(solution.gap) else solution


def _recover(
    program: ConeProgram, xi: np.ndarray, step: np.ndarray, iterations: int, fallback: bool
) -> Solution:
    """Pair xi with c + R dg / ||dg||; if dg = 0, with the optimal point nearest to c.

    `step`, the solver's own primal point, stays where neither can be had in float64: dg != 0, but
    too ill-conditioned to give g.
    """
    xi = reference.feasible(program, xi)
    if not program.direction_vanishes(xi):
        recovered = program.boundary_step(xi)
        gap = program.gap(xi, recovered)
        if gap <= max(CERTIFIED, program.gap(xi, step)):
            return Solution(xi, recovered, True, gap, iterations, fallback)
    if optimum_is_zero(program, xi):
        return _projected(program, xi, step, iterations, fallback)
    return Solution(xi, step, False, program.gap(xi, step), iterations, fallback)


def _projected(
    program: ConeProgram, xi: np.ndarray, step: np.ndarray, iterations: int, fallback: bool
) -> Solution:
    """xi of value 0 with the optimal point nearest to c; with `step` if that cannot be had."""
    projected = nearest(program, program.cancellation_scale(xi))
    step = step if projected is None else _shrunk(program, projected)
    return Solution(xi, step, False, program.gap(xi, step), iterations, fallback)


def _shrunk(program: ConeProgram, step: np.ndarray) -> np.ndarray:
    length = program.direction_norm(step)
    return step if length <= program.radius else (program.radius / length) * step


def _indefinite(gram: np.ndarray) -> bool:
    return bool(np.linalg.eigvalsh(gram)[0] < -1e-14 * len(gram) * np.trace(gram))


def _nearest_semidefinite(gram: np.ndarray) -> np.ndarray:
    """Negative eigenvalues, which a Gram matrix summed in float32 can have, become zero."""
    root = reference.square_root(gram)
    return root @ root.T
