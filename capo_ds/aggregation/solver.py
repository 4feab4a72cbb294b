"""Solve a cone program with a certificate: the interior point first, Clarabel where it falls short.

The answer is a pair, the dual xi and the primal point c + sum_i step_i g_i. The gap between their
values bounds the error of both, whoever found them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from capo_ds.aggregation import interior_point, reference, ridge
from capo_ds.aggregation.exchange import Face, Sides, exchange
from capo_ds.aggregation.free_system import FreeSystems
from capo_ds.aggregation.polish import polish
from capo_ds.aggregation.program import ConeProgram

CERTIFIED = 1e-7  # relative gap of an optimal answer
POLISH_FROM = (1e-2, 1e-5, 1e-8)  # gaps at which the active set of an iterate is tried
POLISHED = 1e-9  # gap that a polished answer must have to end the iteration
CLOSE = 1e-2  # gap from which an exchanged answer is worth polishing
NEAR = 1e-5  # the same, of exchanges that came to no end
PARALLEL = 0.999  # cosine of dg, small as it may be, with the step that it stands for
CLEAR = 1e-3  # share of sum xi_i ||g_i|| above which a certified dg is not zero
ACTIVE = 1e-6  # Clarabel's weights below this share of the largest are at their bound
USABLE = 1e-3  # with more than this there is no answer
WIDER = 2.0  # ball in which to look for dg = 0
DIRECT = 32  # up to this many samples the interior point starts at once


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
        iterations: Cholesky factors taken, but for Newton's on the active set.
        fallback: Clarabel gave the answer.
        sides: of the samples, where dg = 0 was found from them.
    """

    xi: np.ndarray
    step: np.ndarray
    on_boundary: bool
    gap: float
    iterations: int
    fallback: bool
    sides: Sides | None = None

    @property
    def certified(self) -> bool:
        return abs(self.gap) <= CERTIFIED


def solve(program: ConeProgram, zero_inside: bool = False, guess: Sides | None = None) -> Solution:
    """An optimal pair of a program with R > 0, a finite price and some g_i != 0.

    Where dg = 0, the primal point is the optimal one nearest to c; see `ridge`.

    Args:
        zero_inside: g = 0 is known to be in the ball.
        guess: sides at which dg = 0 in a program of the same samples; tried first.

    Raises:
        SolverError: if no pair with a relative gap below 1e-3 was found.
    """
    scaled, step_unit = program.normalised()
    solution = guess and _apex(scaled, guess, 1, proved=True)
    if not solution:
        solution = _staged(scaled, zero_inside)
    if not solution.certified and _indefinite(scaled.gram):
        scaled = replace(scaled, gram=_nearest_semidefinite(scaled.gram))
        solution = _staged(scaled, zero_inside)
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


def optimum_is_zero(program: ConeProgram, xi: np.ndarray) -> bool:
    """Whether the optimal value vanishes to working precision, as it does where dg = 0."""
    return abs(program.dual_value(xi)) <= CERTIFIED * program.cancellation_scale(xi)


def _proves_infeasible(violation: ConeProgram, beta: np.ndarray) -> bool:
    """R ||sum_j beta_j g_j^-|| + beta' q^- < 0, beyond rounding."""
    return violation.dual_value(beta) < -CERTIFIED * violation.magnitude(beta)


def _staged(program: ConeProgram, zero_inside: bool = False) -> Solution:
    """Sets of samples exchanged; where that cycles, with a ridge; where that fails, interior point.

    Every attempt ends in a certified pair or counts for nothing.
    """
    if len(program.linear) <= DIRECT:
        return _interior_point(program)
    sides = Sides.worst_aligned(program)
    solution, spent = _exchanged(program, sides.copy(), 0), 0
    balls = [program]
    if zero_inside and program.linear.any():
        # Whether dg can be 0 does not depend on R, nor does the optimal point nearest to c then: 0
        # is no nearer. A larger ball keeps away from where it would begin to bind.
        balls.append(replace(program, radius=WIDER * program.radius))
    for ball in balls:
        if solution:
            return solution
        followed, rounds = ridge.follow(ball, sides.copy())
        spent += rounds
        if followed:
            solution = _apex(program, followed, spent) or _exchanged(program, followed, spent)
    if solution:
        return solution
    solution = _interior_point(program)
    return replace(solution, iterations=spent + solution.iterations)


def _exchanged(program: ConeProgram, sides: Sides, spent: int) -> Solution | None:
    """A polished answer of `exchange`, if it comes to one."""
    found = exchange(program, sides)
    spent += found.rounds
    if found.face and (found.face.apex or program.direction_vanishes(found.face.xi)):
        return _apex(program, sides, spent)
    xi, gap = found.xi, found.gap
    if xi is None:
        return None
    if POLISHED < gap <= (CLOSE if found.face else NEAR):
        xi, gap = polish(program, xi, _between_bounds(program, xi, margin=0.0))
    # Where dg may be zero not any optimal point counts, but the nearest to c.
    if not gap <= POLISHED or (optimum_is_zero(program, xi) and _short(program, xi)):
        return None
    return _recover(program, xi, program.boundary_step(xi), spent, fallback=False)


def _short(program: ConeProgram, xi: np.ndarray) -> bool:
    """Whether dg is small enough to be zero but for the error of xi."""
    return program.direction_norm(xi) <= CLEAR * float(xi @ program.norms)


def _apex(program: ConeProgram, sides: Sides, spent: int, proved: bool = False) -> Solution | None:
    """dg = 0, or a pair of value 0, with the optimal point nearest to c, if `sides` tell of one.

    Where that point is on the boundary of the ball as well (C = 1 and no g aligned with all: it is
    g = 0), dg may be any multiple of step, and xi = v + s u with dg = s step is often the only one
    of them between its bounds that the free samples hold.

    Args:
        proved: take only a point that xi shows to be the nearest to c: step = sum_i u_i g_i with u
            nonnegative once enough of v is added, which changes nothing since Q v = 0.
    """
    systems = FreeSystems(program, ridge.LEAST)
    found = ridge.apex(program, sides, systems)
    if found is None:
        return None
    xi, step = found
    if program.direction_norm(step) > (1.0 + CERTIFIED) * program.radius:
        return None
    xi = reference.feasible(program, xi)
    if proved and np.any((xi <= 0.0) & (step < 0.0)):
        return None
    if not program.direction_vanishes(xi):
        face = Face.solve(program, sides, systems)
        if face is None or not face.bounded:
            return None
        xi = reference.feasible(program, face.xi)
        if not _parallel(program, xi, step):
            return None
    gap = program.gap(xi, step)
    solution = Solution(xi, step, False, gap, spent, fallback=False, sides=sides)
    return solution if solution.certified and optimum_is_zero(program, xi) else None


def _parallel(program: ConeProgram, xi: np.ndarray, step: np.ndarray) -> bool:
    product = float(xi @ program.gram @ step)
    return product >= PARALLEL * program.direction_norm(xi) * program.direction_norm(step)


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
    assert best  # `iterates` gives one pair at least
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
    if len(program.linear) <= DIRECT:  # larger programs have been through this
        followed, spent = ridge.follow(program, Sides.worst_aligned(program))
        iterations += spent
        solution = _apex(program, followed, iterations) if followed else None
        if solution:
            return replace(solution, fallback=fallback)
    return Solution(xi, step, False, program.gap(xi, step), iterations, fallback)


def _indefinite(gram: np.ndarray) -> bool:
    return bool(np.linalg.eigvalsh(gram)[0] < -1e-14 * len(gram) * np.trace(gram))


def _nearest_semidefinite(gram: np.ndarray) -> np.ndarray:
    """Negative eigenvalues, which a Gram matrix summed in float32 can have, become zero."""
    root = reference.square_root(gram)
    return root @ root.T
