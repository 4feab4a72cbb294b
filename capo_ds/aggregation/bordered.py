"""A positive definite system bordered by a few columns, factored once and solved often."""

from __future__ import annotations

import numpy as np
from scipy.linalg import LinAlgError
from scipy.linalg.lapack import dpotrf, dpotrs  # pyright: ignore[reportAttributeAccessIssue]


class Bordered:
    """K d = r + B y and C' d - E y = f, with K (K, K) positive definite and B, C (K, few).

    LAPACK is called directly: for small K the checks of scipy.linalg's wrappers cost as much as
    the work.

    Raises:
        scipy.linalg.LinAlgError: K is not positive definite in float64.
    """

    def __init__(
        self, matrix: np.ndarray, columns: np.ndarray, rows: np.ndarray, corner: float = 0.0
    ) -> None:
        """Factor; `matrix` is overwritten. `corner` is the last diagonal entry of E, else zero."""
        # A symmetric matrix is its own transpose, and LAPACK wants columns first.
        self._factor, info = dpotrf(matrix.T, lower=True, clean=False, overwrite_a=True)
        if info != 0:
            raise LinAlgError(f"the leading minor of order {info} is not positive definite")
        self._rows = rows
        self._solved = self._inverse_times(columns)
        self._small = rows.T @ self._solved
        if corner:
            self._small[-1, -1] -= corner

    def solve(self, right: np.ndarray, rest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(d, y) for r = `right` (K,) and f = `rest` (few,)."""
        plain = self._inverse_times(right)
        border = np.linalg.solve(self._small, rest - self._rows.T @ plain)
        return plain + self._solved @ border, border

    def _inverse_times(self, right: np.ndarray) -> np.ndarray:
        if right.size == 0:
            return right
        solved, _ = dpotrs(self._factor, right, lower=True)
        return solved
