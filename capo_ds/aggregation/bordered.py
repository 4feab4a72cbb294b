"""A positive definite system bordered by a few columns, factored once and solved often."""

from __future__ import annotations

import numpy as np
from scipy.linalg import cho_factor, cho_solve


class Bordered:
    """K d = r + B y and C' d - E y = f, with K (K, K) positive definite and B, C (K, few).

    Raises:
        scipy.linalg.LinAlgError: K is not positive definite in float64.
    """

    def __init__(
        self, matrix: np.ndarray, columns: np.ndarray, rows: np.ndarray, corner: float = 0.0
    ) -> None:
        """Factor; `matrix` is overwritten. `corner` is the last diagonal entry of E, else zero."""
        # A symmetric matrix is its own transpose, and LAPACK wants columns first.
        self._factor = cho_factor(matrix.T, lower=True, overwrite_a=True, check_finite=False)
        self._rows = rows
        self._solved = cho_solve(self._factor, columns, check_finite=False)
        self._small = rows.T @ self._solved
        if corner:
            self._small[-1, -1] -= corner

    def solve(self, right: np.ndarray, rest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(d, y) for r = `right` (K,) and f = `rest` (few,)."""
        plain = cho_solve(self._factor, right, check_finite=False)
        border = np.linalg.solve(self._small, rest - self._rows.T @ plain)
        return plain + self._solved @ border, border
