"""Faces of the samples whose side is in doubt, the others eliminated.

As the ridge shrinks (`capo_ds.aggregation.ridge`), it is samples with the least weights, or the
least gradients, that change sides. Of 1024 Gaussian gradients in 512 dimensions, of equal and of
heavy-tailed lengths (two seeds, C = 1 and the norm ball), 97 of 100 that still changed sides were
by these margins among the least 11 to 57 of 100 of their kind at a ridge of 1e-3, the least 1 to 25
at 1e-4, the least 5 at 1e-5. Let U be those in doubt, B the other free ones; the rest stays
at 0. Every face has B free, so with K = Q + ridge and its Cholesky factor L_BB the columns
Y = L_BB^-1 (K_BU, 1_P, q) leave for U

    S = K_UU - Y_U' Y_U,   e = 1_P - Y_U' Y_1,   q_U - Y_U' Y_q,

and the equations of `exchange.Face` hold with these and the constants Y_1' Y_1, Y_1' Y_q, Y_q' Y_q.
A face then costs what its few samples cost.

B is factored once, at the least ridge r_0 of a step. At a larger ridge r all of these follow to
first order: with D = diag(Q)_BB (`free_system.diagonal`) and Z = L_BB^-T Y,

    Y' Y  ->  Y' Y - (r - r_0) Z' D Z,

an error of order ((r - r_0) / lambda)^2, lambda the least eigenvalue of K_BB relative to D. Where
it leads is only foreseen: all samples are exchanged at the ridge that it ends at.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.linalg.lapack import (
    dpotrf,  # pyright: ignore[reportAttributeAccessIssue]  made at import
    dtrtrs,  # pyright: ignore[reportAttributeAccessIssue]
)

from capo_ds.aggregation.exchange import SLACK, Face, Sides, exchanging
from capo_ds.aggregation.free_system import Factored, diagonal
from capo_ds.aggregation.program import ConeProgram

# By experiment, with 2048 samples: 0.4 and 0.5 for DOUBT took 12.9 and 13.2 CPU seconds for twelve
# programs of rank 0.4 N and N/2, alike but for noise; 0.5 and 0.7 took 12.7 and 13.9 for eight (all
# with POWER 1/6). WORTH and FEWEST are reckoned, not tuned.
DOUBT = 0.4  # share of the free samples, and of the others, in doubt at a ridge of `AT`
AT = 1e-2
POWER = 1 / 6  # the share falls with this power of the ridge
WORTH = 0.6  # of the samples may be in doubt, else nothing is saved
FEWEST = 256  # samples for which it pays


def in_doubt(program: ConeProgram, sides: Sides, face: Face, ridge: float) -> np.ndarray | None:
    """(U,) sorted indices, by the face at `ridge`; None if eliminating the others does not pay."""
    share = DOUBT * (ridge / AT) ** POWER
    count = len(program.linear)
    if not program.positives or count < FEWEST or share >= WORTH:
        return None
    room = np.full(count, np.inf)
    room[program.positives :] = program.price - face.xi[program.positives :]
    weight = np.minimum(face.xi, room) * program.norms
    slope = face.gradient / np.maximum(program.norms, np.finfo(float).tiny)
    doubtful = sides.upper.copy()
    for group, margin in ((sides.free, weight), (~sides.free & ~sides.upper, slope)):
        members = np.flatnonzero(group)
        least = np.argsort(margin[members], kind="stable")[: int(np.ceil(share * len(members)))]
        doubtful[members[least]] = True
    if np.count_nonzero(doubtful) > WORTH * count:
        return None
    return np.flatnonzero(doubtful)


class Undecided:
    """The faces that differ in the samples U alone. Arrays here are of length U."""

    def __init__(
        self, program: ConeProgram, sides: Sides, samples: np.ndarray, ridge: float
    ) -> None:
        """Raises numpy.linalg.LinAlgError if K_BB is not definite in float64.

        Args:
            sides: of all samples.
            samples: (U,) sorted indices; they hold all of `sides.upper`.
            ridge: r_0, of the samples B.
        """
        self.program, self.samples = program, samples
        self.price, self.radius = program.price, program.radius
        self.positives = int(np.count_nonzero(samples < program.positives))
        self._diagonal = diagonal(program)
        decided = sides.free.copy()
        decided[samples] = False
        index = np.flatnonzero(decided)
        ones = np.zeros(len(program.linear))
        ones[: program.positives] = 1.0
        both = np.stack([ones, program.linear])
        count = len(samples)
        rest = np.zeros((count + 2, count + 2))
        rest[:count, :count] = program.gram[np.ix_(samples, samples)]
        rest[count:, :count], rest[:count, count:] = both[:, samples], both[:, samples].T
        self._slope = np.zeros_like(rest)
        if len(index):
            matrix = program.gram[np.ix_(index, index)]
            matrix.flat[:: len(index) + 1] += ridge * self._diagonal[index]
            factor, info = dpotrf(matrix.T, lower=True, clean=False, overwrite_a=True)
            if info:
                raise np.linalg.LinAlgError("the decided samples depend on each other")
            columns = np.empty((len(index), count + 2), order="F")
            columns[:, :count] = program.gram[np.ix_(samples, index)].T
            columns[:, count:] = both[:, index].T
            columns, _ = dtrtrs(factor, columns, lower=True, overwrite_b=True)
            rest -= columns.T @ columns
            solved, _ = dtrtrs(factor, columns, lower=True, trans=1, overwrite_b=True)
            solved *= np.sqrt(self._diagonal[index])[:, None]
            self._slope = solved.T @ solved
        self._rest, self._least = rest, ridge
        noise = SLACK * (program.radius * program.norms + np.abs(program.linear))
        self._noise = noise[samples]

    def sides(self, whole: Sides) -> Sides:
        """Those of the samples U."""
        return Sides(whole.free[self.samples], whole.upper[self.samples])

    def put(self, sides: Sides, whole: Sides) -> None:
        """Back into the sides of all samples."""
        whole.free[self.samples] = sides.free
        whole.upper[self.samples] = sides.upper

    def faces(self, sides: Sides, ridge: float) -> Iterator[tuple[Face, int]]:
        """As `exchange.faces`."""
        own = ridge * self._diagonal[self.samples]
        count = len(self.samples)
        rest = self._rest + (ridge - self._least) * self._slope
        self._gram = np.ascontiguousarray(rest[:count, :count])
        self._simplex, self._linear = rest[count:, :count]
        self._constants = -rest[count:, count:]
        return exchanging(self, sides, lambda: self._face(sides, own))

    def _face(self, sides: Sides, own: np.ndarray) -> Face | None:
        fixed = np.where(sides.upper, self.price, 0.0)
        pull = self._gram @ fixed + own * fixed
        rights = np.stack([self._simplex, -self._linear, -pull])
        solved = np.zeros_like(rights)
        if sides.free.any():
            factored = Factored.of(self._gram, own, sides.free)
            if factored is None:
                return None
            solved = factored.solve(rights)
        (one_one, one_q, one_p), (_, q_q, _), (*_, p_p) = solved @ rights.T
        one_one += self._constants[0, 0]
        one_q -= self._constants[0, 1]
        q_q += self._constants[1, 1]
        one_p += self._simplex @ fixed
        if not one_one > 0.0:
            return None
        t_u, t_v = -one_q / one_one, (1.0 - one_p) / one_one
        u, v = solved[1] + t_u * solved[0], solved[2] + t_v * solved[0] + fixed
        room = self.radius**2 - (q_q - one_q**2 / one_one)
        squared = float(fixed @ pull) - p_p + t_v**2 * one_one
        if not np.isfinite(room):
            return None
        if room <= 0.0:
            return Face(u, np.zeros_like(u), self._noise, bounded=False)
        if not squared > 0.0:
            return None
        stretch = np.sqrt(squared / room)
        step = u + v / stretch
        gradient = self._gram @ step + own * step + self._linear
        gradient -= (t_u + t_v / stretch) * self._simplex
        return Face(stretch * step, gradient, self._noise)
