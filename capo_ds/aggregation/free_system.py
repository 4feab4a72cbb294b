"""The linear systems of a face: Q_FF with a ridge, bordered by the simplex, factored once."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.linalg.lapack import (
    dpotrf,  # pyright: ignore[reportAttributeAccessIssue]  made at import
    dpotrs,  # pyright: ignore[reportAttributeAccessIssue]
    dtrtrs,  # pyright: ignore[reportAttributeAccessIssue]
)

from capo_ds.aggregation.program import ConeProgram

UPDATED = 0.15  # of the factored samples may have changed sides before a new factor pays
WORTH = 256  # samples from which an update is cheaper than a factor
ZERO = 1e-12  # of the largest norm; a zero on the diagonal has no Cholesky factor
SOUND = 1e-6  # ridges from which an update is accurate


def diagonal(program: ConeProgram) -> np.ndarray:
    """(K,) what the ridge is a share of: squared norms, those of zero gradients raised."""
    return np.maximum(program.norms, ZERO * program.norms.max()) ** 2


class FreeSystems:
    """(Q + ridge)_FF d = r + t 1_P, 1' d_P = total, at one ridge, for one F after another.

    An F that differs in a few samples from the one last factored is solved by that factor and a
    small Schur complement: samples that left are held at zero by multipliers, those that came are
    added as a border.
    """

    def __init__(self, program: ConeProgram, ridge: float) -> None:
        self.program = program
        self.ridge = ridge
        self.own = ridge * diagonal(program)
        self.ones = np.zeros(len(program.linear))
        self.ones[: program.positives] = 1.0
        self._updates = ridge >= SOUND
        self._factored: Factored | None = None

    def solve(self, free: np.ndarray, rights: np.ndarray, totals: np.ndarray) -> np.ndarray | None:
        """(k, K) d for each of k rows r (k, K) and totals (k,); zero outside F.

        None if the matrix is not positive definite in float64.

        Args:
            free: (K,) bool.
        """
        plain = self._plain(free, np.vstack([self.ones, rights]))
        if plain is None:
            return None
        solved, plain = plain[0], plain[1:]
        unit = self.ones @ solved
        if unit > 0.0:
            plain = plain + np.outer((totals - plain @ self.ones) / unit, solved)
        return plain

    def _plain(self, free: np.ndarray, rights: np.ndarray) -> np.ndarray | None:
        if not free.any():
            return np.zeros_like(rights)
        base = self._factored
        if base is not None:
            changed = np.flatnonzero(base.free != free)
            if len(changed) == 0:
                return base.solve(rights)
            few = len(changed) <= UPDATED * len(base.index) and len(base.index) >= WORTH
            if few and self._updates:
                return base.updated(self.program.gram, self.own, changed, rights)
        self._factored = Factored.of(self.program.gram, self.own, free)
        return self._factored and self._factored.solve(rights)


@dataclass
class Factored:
    """The Cholesky factor L of (Q + own)_00, and columns L^-1 B of borders met so far."""

    free: np.ndarray
    index: np.ndarray
    factor: np.ndarray
    columns: dict[int, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, gram: np.ndarray, own: np.ndarray, free: np.ndarray) -> Factored | None:
        index = np.flatnonzero(free)
        matrix = gram[np.ix_(index, index)]
        matrix.flat[:: len(index) + 1] += own[index]
        factor, info = dpotrf(matrix.T, lower=True, clean=False, overwrite_a=True)
        return None if info else cls(free.copy(), index, factor)

    def solve(self, rights: np.ndarray) -> np.ndarray:
        """(k, K) for rows (k, K), zero outside F."""
        solutions = np.zeros_like(rights)
        solutions[:, self.index] = dpotrs(self.factor, rights[:, self.index].T, lower=True)[0].T
        return solutions

    def updated(
        self, gram: np.ndarray, own: np.ndarray, changed: np.ndarray, rights: np.ndarray
    ) -> np.ndarray | None:
        """`solve` on F with the samples `changed` (indices) taken out or in."""
        left, came = changed[self.free[changed]], changed[~self.free[changed]]
        self._extend(gram, np.concatenate([left, came]))
        border = np.stack([self.columns[i] for i in (*left, *came)], axis=1)
        small = -border.T @ border
        small[len(left) :, len(left) :] += gram[np.ix_(came, came)] + np.diag(own[came])
        rights = rights.copy()
        rights[:, left] = 0.0
        half, _ = dtrtrs(self.factor, rights[:, self.index].T, lower=True)
        rest = np.zeros((len(changed), len(rights)))
        rest[len(left) :] = rights[:, came].T
        try:
            edge = np.linalg.solve(small, rest - border.T @ half)
        except np.linalg.LinAlgError:
            return None
        inner, _ = dtrtrs(self.factor, half - border @ edge, lower=True, trans=1)
        solutions = np.zeros_like(rights)
        solutions[:, self.index] = inner.T
        solutions[:, left] = 0.0
        solutions[:, came] = edge[len(left) :].T
        return solutions

    def _extend(self, gram: np.ndarray, samples: np.ndarray) -> None:
        """Columns L^-1 e_i for samples inside, L^-1 Q_0i for samples outside."""
        new = np.array([i for i in samples if i not in self.columns], dtype=int)
        if len(new) == 0:
            return
        columns = np.asfortranarray(gram[np.ix_(new, self.index)].T)
        inside = np.flatnonzero(self.free[new])
        columns[:, inside] = 0.0
        columns[np.searchsorted(self.index, new[inside]), inside] = 1.0
        solved, _ = dtrtrs(self.factor, columns, lower=True, overwrite_b=True)
        self.columns.update(zip(new.tolist(), solved.T, strict=True))
