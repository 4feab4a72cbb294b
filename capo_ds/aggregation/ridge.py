"""The dual's free samples found with a ridge on Q that shrinks to nothing.

Exchanges of whole sets (`capo_ds.aggregation.exchange`) cycle where Q_FF is ill conditioned: near
duplicates, more samples than dimensions, a dual whose optimum is dg = 0. With Q + delta diag(Q) in
place of Q each gradient has a component of its own, of length sqrt(delta) ||g_i||, orthogonal to
all others: the program is then as well conditioned as one likes, and dg != 0. Its solution changes
continuously with delta, so a few exchanges follow it as delta shrinks, by small steps where they
fail, by large ones where they do not.

Where dg = 0 at the optimum, the primal point c + R dg / ||dg|| of the ridged program tends, as
delta goes to 0, to the optimal point *nearest to c*: a gain of order sqrt(delta) is to be had from
the samples' own components, the more the less of the radius is spent on leaving c. In the terms
of `exchange`, s -> 0 and that point is c + sum_i u_i g_i; xi -> v, with Q v = 0.
"""

from __future__ import annotations

import numpy as np

from capo_ds.aggregation.exchange import FEW, Sides, faces
from capo_ds.aggregation.free_system import FreeSystems
from capo_ds.aggregation.program import ConeProgram

START = 0.1
MOST = 1e4  # no ridge above this is tried
LEAST = 1e-12
FIRST_STEP = 1.0  # of log10 delta
LEAST_STEP, MOST_STEP = 0.005, 4.0
EASY, HARD = 3, 6  # rounds below, above which the step grows, shrinks
SETTLED = 0.003  # share of the free samples that may still move when the ridge shrinks on
REFINEMENTS = 2


def follow(program: ConeProgram, sides: Sides) -> tuple[Sides | None, int]:
    """The sides of the program at the least ridge, None if they were lost; factors taken."""
    ridge, step = START, FIRST_STEP
    reached, known, spent = None, sides, 0
    while True:
        moved_to = known.copy()
        rounds = _settle(program, moved_to, ridge, warm=reached is not None)
        spent += abs(rounds)
        if rounds > 0:
            reached, known = ridge, moved_to
            if ridge <= LEAST:
                return known, spent
            step = min(2 * step, MOST_STEP) if rounds <= EASY else step
            step = step / 2 if rounds > HARD else step
        elif reached is None:
            ridge *= 10.0
            if ridge > MOST:
                return None, spent
            continue
        else:
            step /= 3.0
        if step < LEAST_STEP:
            return None, spent
        ridge = max(reached * 10.0**-step, LEAST)


def _settle(program: ConeProgram, sides: Sides, ridge: float, warm: bool) -> int:
    """Rounds until (nearly) all samples are on their right side; minus that if they do not.

    warm: `sides` come from a larger ridge. Then faces without a solution, or more exchanges in the
    second round than in the first, tell that the step was too long.
    """
    few = 0.0 if ridge <= LEAST else SETTLED
    rounds, first = 0, 0
    for face, moved in faces(program, sides, ridge):
        rounds += 1
        first = first or moved
        if face.bounded and moved <= few * np.count_nonzero(sides.free):
            return rounds
        if warm and (not face.bounded or moved > max(first, FEW)):
            break
    return -max(rounds, 1)


def apex(
    program: ConeProgram, sides: Sides, systems: FreeSystems
) -> tuple[np.ndarray, np.ndarray] | None:
    """xi = v with Q v = 0, and the step u to the optimal point nearest to c; both (K,).

    The ridge's pull on u is taken out by proximal steps, in which it pulls towards the last u
    instead of zero. In v it is no error: with the ridge v is the smallest of all such v, and only
    that one is sure to lie within the bounds.

    Args:
        systems: at the ridge `LEAST`.
    """
    fixed = np.where(sides.upper, program.price, 0.0)
    rights = np.stack([-program.linear, -(program.gram @ fixed)])
    solved = systems.solve(sides.free, rights, np.array([0.0, 1.0]))
    if solved is None:
        return None
    u, v = solved
    for _ in range(REFINEMENTS):
        refined = systems.solve(sides.free, rights[:1] + systems.own * u, np.zeros(1))
        if refined is None:
            return None
        u = refined[0]
    return v + fixed, u
