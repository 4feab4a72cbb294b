"""The dual's free samples found with a ridge on Q that shrinks to nothing.

Exchanges of whole sets (`capo_ds.aggregation.exchange`) cycle where Q_FF is ill conditioned: near
duplicates, more samples than dimensions, a dual whose optimum is dg = 0. With Q + delta diag(Q) in
place of Q each gradient has a component of its own, of length sqrt(delta) ||g_i||, orthogonal to
all others: the program is then as well conditioned as one likes, and dg != 0. Its solution changes
continuously with delta, so a few exchanges follow it as delta shrinks, by small steps where they
fail, by large ones where they do not. From some hundreds of samples on the small steps are taken on
those in doubt alone (`capo_ds.aggregation.undecided`), and all samples see where they led.

Where dg = 0 at the optimum, the primal point c + R dg / ||dg|| of the ridged program tends, as
delta goes to 0, to the optimal point *nearest to c*: a gain of order sqrt(delta) is to be had from
the samples' own components, the more the less of the radius is spent on leaving c. In the terms
of `exchange`, s -> 0 and that point is c + sum_i u_i g_i; xi -> v, with Q v = 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from capo_ds.aggregation.exchange import FEW, Face, Sides, faces
from capo_ds.aggregation.free_system import FreeSystems
from capo_ds.aggregation.program import ConeProgram
from capo_ds.aggregation.undecided import Undecided, in_doubt

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
    ridge, spent = START, 0
    while True:
        settled = _settle(faces(program, moved_to := sides.copy(), ridge), few=SETTLED, warm=False)
        spent += settled.rounds
        if settled.face:
            break
        ridge *= 10.0
        if ridge > MOST:
            return None, spent
    path = _Path(moved_to, ridge, LEAST, settled.face)
    while path.going:
        foreseen = _look_ahead(program, path) if path.hard else None
        path.advance(lambda *given: faces(program, *given), foreseen)
    return (path.sides if path.ridge <= LEAST else None), spent + path.spent


def _look_ahead(program: ConeProgram, path: _Path) -> tuple[Sides, float] | None:
    """Sides at the next ridge, or as far as it goes, if only samples in doubt move."""
    assert path.face  # a path of all samples starts from one
    samples = in_doubt(program, path.sides, path.face, path.ridge)
    if samples is None:
        return None
    try:
        undecided = Undecided(program, path.sides, samples, path.next)
    except np.linalg.LinAlgError:
        return None
    few = _Path(undecided.sides(path.sides), path.ridge, path.next, step=path.step)
    while few.going:
        few.advance(undecided.faces)
    path.hard = few.spent > EASY
    if few.ridge == path.ridge:
        return None
    foreseen = path.sides.copy()
    undecided.put(few.sides, foreseen)
    return foreseen, few.ridge


@dataclass
class _Settled:
    """Rounds made, and the last face if (nearly) all samples were on their right side there."""

    rounds: int
    face: Face | None


def _settle(rounds: Iterator[tuple[Face, int]], few: float, warm: bool) -> _Settled:
    """Exchange until no more than a share `few` of the free samples move.

    warm: the sides come from a larger ridge. Then faces without a solution, or more exchanges in
    the second round than in the first, tell that the step was too long.
    """
    count, first = 0, 0
    for face, moved in rounds:
        count += 1
        first = first or moved
        if face.bounded and moved <= few * np.count_nonzero(face.xi):
            return _Settled(count, face)
        if warm and (not face.bounded or moved > max(first, FEW)):
            break
    return _Settled(max(count, 1), None)


@dataclass
class _Path:
    """Sides known at a ridge, on the way to the ridge `end`.

    Attributes:
        face: the last one solved at `ridge`; None at a start that needs none.
        step: the next one, of log10 of the ridge.
        spent: rounds so far.
        hard: the last step took many rounds.
    """

    sides: Sides
    ridge: float
    end: float
    face: Face | None = None
    step: float = FIRST_STEP
    spent: int = 0
    hard: bool = False

    @property
    def next(self) -> float:
        return max(self.ridge * 10.0**-self.step, self.end)

    @property
    def going(self) -> bool:
        return self.ridge > self.end and self.step >= LEAST_STEP

    def advance(
        self,
        faces: Callable[[Sides, float], Iterator[tuple[Face, int]]],
        foreseen: tuple[Sides, float] | None = None,
    ) -> None:
        """One step; or to a ridge with the sides that are foreseen there."""
        moved_to, ridge = foreseen or (self.sides.copy(), self.next)
        few = 0.0 if ridge <= LEAST else SETTLED
        settled = _settle(faces(moved_to, ridge), few, warm=foreseen is None)
        self.spent += settled.rounds
        self.hard = settled.face is None or settled.rounds > HARD or (self.hard and bool(foreseen))
        if settled.face is None:
            self.step /= 3.0
            return
        self.sides, self.ridge, self.face = moved_to, ridge, settled.face
        if settled.rounds <= EASY:
            self.step = min(2 * self.step, MOST_STEP)
        elif settled.rounds > HARD:
            self.step /= 2


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
