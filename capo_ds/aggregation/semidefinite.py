"""A Gram matrix that rounding has made indefinite is no Gram matrix: the nearest sound one.

A float32 Gram matrix of N gradients in fewer than N dimensions has eigenvalues of about -1e-7 where
there should be zeros. With such a matrix a squared length can be negative, weak duality fails, and
no pair of points proves anything. So everything that follows, the certificate included, is about
one positive semidefinite matrix: the given one where it is sound in float64, else this one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy.linalg.lapack import dpotrf  # pyright: ignore[reportAttributeAccessIssue]

from capo_ds.aggregation.problem import GramProblem

SOUND = 1e-13  # eigenvalues of the cosines above minus this share of the largest are float64's zero
NOISE = 3.0  # eigenvalues up to this multiple of the most negative one are rounding as well
# How far a user's matrix may be from one: far beyond rounding, 0.004 of a cosine in bfloat16.
TINY = 1e-4  # share of the largest squared length that stands for none
WIDE = 1.05  # a cosine
INDEFINITE = 0.01  # share of the trace by which the cosines may be indefinite
CHOLESKY = 512  # up to here a Cholesky factor is the quickest proof that a matrix is sound
DENSE = 256  # up to here all eigenvalues are computed at once
LANCZOS_STEPS = 24
OVERSAMPLING = 16
SEED = 0


def semidefinite(problem: GramProblem) -> tuple[GramProblem, float]:
    """The problem with a positive semidefinite Gram matrix, and how far that is from the given one.

    Eigenvalues of the matrix of cosines <g_i, g_j> / (||g_i|| ||g_j||) that are negative, or so
    small that they may be rounding of the same size, become zero: rounding is relative to the
    norms, and small gradients must not drown in that of large ones. A matrix that has none beyond
    float64's rounding is left as it is.

    Returns:
        The second is the largest change of a cosine; 0 for a sound matrix.
    """
    norms = problem.norms
    used = np.flatnonzero(norms > 0.0)
    if problem.gram[norms <= 0.0].any():  # of no length, by rounding: no product either
        gram = np.zeros_like(problem.gram)
        gram[np.ix_(used, used)] = problem.gram[np.ix_(used, used)]
        problem = replace(problem, gram=gram)
    if len(used) < 2:
        return problem, 0.0
    if len(used) > CHOLESKY and _sound(problem.gram, norms):
        return problem, 0.0
    units = norms[used]
    cosines = problem.gram[np.ix_(used, used)]
    cosines /= units
    cosines /= units[:, None]
    clean = _without_noise(cosines)
    if clean is None:
        return problem, 0.0
    gram = np.zeros_like(problem.gram)
    gram[np.ix_(used, used)] = clean * units * units[:, None]
    return replace(problem, gram=gram), float(np.abs(clean - cosines).max())


def refuse_what_is_no_gram_matrix(problem: GramProblem) -> None:
    """Raises `ValueError` for a matrix that no gradients have, beyond what rounding does in float32
    and in narrower types: a negative squared length, a cosine above 1, a negative eigenvalue."""
    squares = np.diag(problem.gram)
    scale = np.abs(squares).max()
    asked = "is it the Gram matrix of the gradients?"
    if squares.min() < -TINY * scale:
        worst = int(squares.argmin())
        raise ValueError(
            f"gram[{worst}, {worst}] is {squares[worst]:.3g}, and a squared length is not "
            f"negative: {asked}"
        )
    norms = problem.norms
    excess = np.abs(problem.gram) - WIDE * np.outer(norms, norms) - TINY * scale
    if excess.max() > 0.0:
        i, j = (int(place) for place in np.unravel_index(excess.argmax(), excess.shape))
        raise ValueError(
            f"gram[{i}, {j}] is {problem.gram[i, j]:.3g}, more than the product of the lengths, "
            f"{norms[i] * norms[j]:.3g}: {asked}"
        )
    units = norms[norms > 0.0]
    if len(units) < 2:
        return
    cosines = problem.gram[np.ix_(norms > 0.0, norms > 0.0)] / units / units[:, None]
    margin = INDEFINITE * len(units)
    if len(units) <= CHOLESKY:
        sound = _positive(cosines, margin)
    else:
        sound = _extremes(cosines)[0] >= -margin
    if not sound:
        raise ValueError(
            f"gram is indefinite: the matrix of its cosines has an eigenvalue below {-margin:.2g}, "
            f"and those of gradients have none below 0: {asked}"
        )


def _sound(gram: np.ndarray, norms: np.ndarray) -> bool:
    """Whether the cosines, which are not formed, have no eigenvalue that is negative in float64."""
    inverse = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0.0)
    start = np.random.default_rng(SEED).normal(size=len(norms)) * (norms > 0.0)
    values = _ritz_values(lambda x: inverse * (gram @ (inverse * x)), start, LANCZOS_STEPS)
    return bool(values[0] >= -SOUND * len(norms) * values[-1])


def _without_noise(matrix: np.ndarray) -> np.ndarray | None:
    """The matrix on the eigenvalues above its noise; None if it is sound."""
    count = len(matrix)
    if count <= CHOLESKY and _positive(matrix, SOUND * count):
        return None
    if count <= DENSE:
        values, vectors = np.linalg.eigh(matrix)
        least, most = values[0], values[-1]
    else:
        least, most = _extremes(matrix)
    if least >= -SOUND * count * most:
        return None
    noise = -NOISE * least
    size = DENSE // 4
    while count > DENSE and 2 * size < count:
        values, vectors = _leading(matrix, size)
        if values[0] <= noise:
            break
        size *= 4
    else:
        if count > DENSE:
            values, vectors = np.linalg.eigh(matrix)
    kept = values > noise
    root = vectors[:, kept] * np.sqrt(values[kept])
    return root @ root.T


def _positive(matrix: np.ndarray, shift: float) -> bool:
    """Whether all eigenvalues are above -shift."""
    shifted = matrix.copy()
    shifted.flat[:: len(matrix) + 1] += shift
    return dpotrf(shifted, overwrite_a=True, clean=False)[1] == 0


def _extremes(matrix: np.ndarray) -> tuple[float, float]:
    """Estimates of the least and the largest eigenvalue, by a few Lanczos steps."""
    start = np.random.default_rng(SEED).normal(size=len(matrix))
    values = _ritz_values(lambda x: matrix @ x, start, LANCZOS_STEPS)
    return float(values[0]), float(values[-1])


def _ritz_values(
    times: Callable[[np.ndarray], np.ndarray], start: np.ndarray, steps: int
) -> np.ndarray:
    """Ritz values after some steps, fully reorthogonalised; each lies within the spectrum.

    times: the product of the symmetric matrix with a vector.
    """
    basis = [start / np.linalg.norm(start)]
    products = []
    for _ in range(steps):
        products.append(times(basis[-1]))
        rest = products[-1].copy()
        for _ in range(2):
            rows = np.array(basis)
            rest -= rows.T @ (rows @ rest)
        length = np.linalg.norm(rest)
        if length <= 1e-14 * np.linalg.norm(products[-1]):
            break
        basis.append(rest / length)
    rows = np.array(basis[: len(products)])
    return np.linalg.eigvalsh(rows @ np.array(products).T)


def _leading(matrix: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """About `size` leading eigenvalues, ascending, and vectors, by block iteration (Halko 2011)."""
    random = np.random.default_rng(SEED).normal(size=(len(matrix), size + OVERSAMPLING))
    basis = random
    for _ in range(2):
        basis, _ = np.linalg.qr(matrix @ basis)
    values, vectors = np.linalg.eigh(basis.T @ (matrix @ basis))
    return values[OVERSAMPLING:], basis @ vectors[:, OVERSAMPLING:]
