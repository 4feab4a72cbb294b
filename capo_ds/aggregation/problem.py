"""What every aggregator takes and returns: a Gram matrix in, one coefficient per sample out."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

MASKS = ("positive", "negative")


@dataclass(frozen=True)
class GramProblem:
    """The per-sample gradients of one step, seen through their inner products.

    Sample i has the ascent direction g_i in R^d (the gradient of its own objective, advantage
    included). A sample in neither mask is *neutral*: its advantage is zero, it carries at most a
    KL gradient, so it enters g_0 = sum_i average_i g_i and no constraint.

    A sample whose gradient holds NaN or Inf is *dropped*: it counts as a zero gradient, in no
    mask, with weight 0 in g_0, and every aggregator gives it coefficient 0. The other weights are
    not renormalised. (A caller that rebuilds sum_i c_i g_i must skip it: 0 * NaN is NaN.)

    Attributes:
        gram: (N, N) float64, Q_ij = <g_i, g_j>; symmetrised, rows of dropped samples zeroed.
        positive: (N,) bool, samples with positive advantage.
        negative: (N,) bool, samples with negative advantage.
        average: (N,) float64, weights w of g_0 = sum_i w_i g_i; 1/N each when not given.
        dropped: (N,) bool, found from `gram`.

    Raises:
        ValueError: on shapes that do not fit, a complex or asymmetric Gram matrix, overlapping
            masks, a weight that is not finite.
    """

    gram: np.ndarray
    positive: np.ndarray
    negative: np.ndarray
    average: np.ndarray = None  # pyright: ignore[reportAssignmentType]
    dropped: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        if np.iscomplexobj(self.gram):
            raise ValueError("gram must be real, got complex numbers; take the real part")
        gram = np.array(self.gram, dtype=np.float64)
        if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or gram.shape[0] == 0:
            raise ValueError(f"gram must be (N, N) with N >= 1, got {gram.shape}")
        count = gram.shape[0]
        masks = [_mask(getattr(self, name), name, count) for name in MASKS]
        if np.any(masks[0] & masks[1]):
            raise ValueError("a sample cannot be both positive and negative")
        average = np.full(count, 1.0 / count) if self.average is None else self.average
        average = np.array(average, dtype=np.float64)
        if average.shape != (count,) or not np.all(np.isfinite(average)):
            raise ValueError(f"average must be {count} finite weights, got shape {average.shape}")

        dropped = _non_finite_samples(gram)
        gram[dropped, :] = 0.0
        gram[:, dropped] = 0.0
        average[dropped] = 0.0
        arrays = {
            "gram": _symmetrised(gram),
            "positive": masks[0] & ~dropped,
            "negative": masks[1] & ~dropped,
            "average": average,
            "dropped": dropped,
        }
        for name, value in arrays.items():
            value.setflags(write=False)
            object.__setattr__(self, name, value)

    @property
    def count(self) -> int:
        """N, dropped samples included."""
        return self.gram.shape[0]

    @cached_property
    def q0(self) -> np.ndarray:
        """(N,) inner products q_0 = Q w = <g_i, g_0>."""
        return self.gram @ self.average

    @cached_property
    def vanilla_norm(self) -> float:
        """||g_0|| = sqrt(w' Q w)."""
        return float(np.sqrt(max(self.average @ self.q0, 0.0)))

    @cached_property
    def norms(self) -> np.ndarray:
        """(N,) norms ||g_i||."""
        return np.sqrt(np.maximum(np.diag(self.gram), 0.0))


@dataclass(frozen=True)
class Aggregation:
    """An aggregated gradient g~ = sum_i coefficients_i g_i and how it came about.

    When `on_boundary`, g~ = sum_i base_i g_i + radius ||g_0|| dg / ||dg|| with dg = sum_i xi_i g_i,
    so a caller whose Gram matrix comes from a sketch can put in the true norms.

    Attributes:
        coefficients: (N,) float64.
        xi: (N,) float64 weights of the direction dg, or None for aggregators without one.
        status: `optimal`, or one of the others that `capo` lists.
        report: plain floats, ready to be logged.
        base: (N,) float64 weights of the trust region's centre (g_0, or zeros); None without one.
        average: (N,) float64 weights of the g_0 that the radius is relative to; None without one.
        radius: C, relative to ||g_0||.
        on_boundary: the trust region is active at g~.
    """

    coefficients: np.ndarray
    xi: np.ndarray | None = None
    status: str = "optimal"
    report: dict[str, float] = field(default_factory=dict)
    base: np.ndarray | None = None
    average: np.ndarray | None = None
    radius: float = 0.0
    on_boundary: bool = False

    def direction_scale(self, vanilla_norm: float, direction_norm: float) -> float:
        """C ||g_0|| / ||dg||: how much of dg an aggregate on the boundary adds to its centre."""
        return self.radius * vanilla_norm / direction_norm

    def recovered(self, vanilla_norm: float, direction_norm: float) -> np.ndarray:
        """(N,) coefficients of g~ = centre + C ||g_0|| dg / ||dg|| on the boundary, by norms that
        are known better than the Gram matrix has them."""
        assert self.base is not None and self.xi is not None  # set with `on_boundary`
        return self.base + self.direction_scale(vanilla_norm, direction_norm) * self.xi


def _mask(values: np.ndarray, name: str, count: int) -> np.ndarray:
    mask = np.array(values)
    if mask.shape != (count,) or mask.dtype != np.bool_:
        raise ValueError(f"{name} must be {count} booleans, got {mask.dtype} of {mask.shape}")
    return mask


def _non_finite_samples(gram: np.ndarray) -> np.ndarray:
    """(N,) samples to drop so that the rest of the Gram matrix is finite.

    One bad gradient spoils its whole row and column, and its diagonal entry first of all. If
    entries off a finite diagonal are bad too, the sample with most of them goes, and so on.
    """
    dropped = ~np.isfinite(np.diag(gram))
    bad = ~np.isfinite(gram)
    while True:
        kept_bad = bad & ~dropped[:, None] & ~dropped[None, :]
        per_sample = kept_bad.sum(axis=0) + kept_bad.sum(axis=1)
        if not per_sample.any():
            return dropped
        dropped[np.argmax(per_sample)] = True


def _symmetrised(gram: np.ndarray) -> np.ndarray:
    """(Q + Q') / 2; a difference beyond the rounding of a float32 product is an error."""
    norms = np.sqrt(np.abs(np.diag(gram)))
    asymmetry = np.abs(gram - gram.T)
    if np.any(asymmetry > 1e-3 * np.outer(norms, norms) + 1e-6 * norms.max() ** 2):
        raise ValueError("gram is not symmetric: is it the Gram matrix of the gradients?")
    return (gram + gram.T) / 2
