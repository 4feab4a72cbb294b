"""Conflict, alignment and concentration of an aggregated gradient, from the Gram matrix alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from capo_ds.aggregation.problem import GramProblem

# A constraint that is active at the optimum has <g, g_i> = 0 up to the solver's and the Gram
# matrix's rounding. That is not a conflict: only a cosine below -1e-6 is. The threshold lies far
# above the solver's accuracy (1e-9) and far below the cosines that matter (1e-3 and up).
CONFLICT_COSINE = 1e-6
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Applied:
    """An aggregate g~, seen through its inner products.

    products: (N,) <g~, g_i>. norm: ||g~||. overlap: <g~, g_0>.
    """

    products: np.ndarray
    norm: float
    overlap: float

    @classmethod
    def of(cls, blocks: Sequence[GramProblem], coefficients: np.ndarray) -> Applied:
        """coefficients: (blocks, N); block b of g~ is sum_i c_bi times that block of g_i."""
        products, square = np.zeros(blocks[0].count), 0.0
        for block, weights in zip(blocks, coefficients, strict=True):
            part = block.gram @ weights
            products += part
            square += float(weights @ part)
        overlap = float(blocks[0].average @ products)
        return cls(products, float(np.sqrt(max(square, 0.0))), overlap)


def diagnose(
    problem: GramProblem, applied: Applied, xi: np.ndarray | None = None
) -> dict[str, float]:
    """Measures of g~ = sum_i c_i g_i against g_0, for TensorBoard.

    A share is taken over the samples of its group: positive, negative, or both ("all"). A group
    without samples has no share, so its keys are left out.

    Args:
        problem: the samples.
        applied: g~.
        xi: (N,) direction weights, if the aggregator has them.

    Returns:
        All under `conflict/`: `{positive,negative,all}_{before,after}`: share of samples whose
        cosine with g_0 (before) or g~ (after) is below -1e-6; `cosine_{before,after}_q05 ... q95`:
        quantiles of those cosines; `min_alignment`: min_i <g~, g_i> over positives;
        `max_violation`: max_j max(0, -<g~, g_j>) over negatives; `cosine_to_vanilla`: cosine of g~
        and g_0; `norm_ratio`: ||g~|| / ||g_0||; `effective_samples`: (sum xi)^2 / sum xi^2.
    """
    after, after_norm = applied.products, applied.norm
    voices = problem.positive | problem.negative
    measures: dict[str, float] = {}
    for when, products, norm in (
        ("before", problem.q0, problem.vanilla_norm),
        ("after", after, after_norm),
    ):
        cosine = ratio(products, problem.norms * norm)
        for name, share in conflicting(cosine, problem.positive, problem.negative).items():
            measures[f"conflict/{name}_{when}"] = share
        if voices.any():
            for level in QUANTILES:
                key = f"conflict/cosine_{when}_q{round(100 * level):02d}"
                measures[key] = float(np.quantile(cosine[voices], level))
    if problem.positive.any():
        measures["conflict/min_alignment"] = float(after[problem.positive].min())
    if problem.negative.any():
        measures["conflict/max_violation"] = float(max(0.0, -after[problem.negative].min()))
    overlap = np.asarray(applied.overlap)
    measures["conflict/cosine_to_vanilla"] = float(
        ratio(overlap, after_norm * problem.vanilla_norm)
    )
    measures["conflict/norm_ratio"] = float(ratio(np.asarray(after_norm), problem.vanilla_norm))
    if xi is not None and np.any(xi):
        measures["conflict/effective_samples"] = float(np.sum(xi) ** 2 / np.sum(xi**2))
    return measures


def conflicting(
    cosines: np.ndarray, positive: np.ndarray, negative: np.ndarray
) -> dict[str, float]:
    """Share of the samples with a cosine below -1e-6: of the `positive`, the `negative`, and of
    `all` of both; a kind without samples has none.

    cosines: (n,) with an aggregate. positive, negative: (n,) of bool.
    """
    kinds = {"positive": positive, "negative": negative, "all": positive | negative}
    return {
        name: float(np.mean(cosines[kind] < -CONFLICT_COSINE))
        for name, kind in kinds.items()
        if kind.any()
    }


def between(problem: GramProblem, sources: np.ndarray) -> dict[str, float]:
    """How data sets pull on each other.

    sources: (N,) names.

    Returns:
        `conflict/between/A/B`: cosine of the mean gradients of the data sets A and B (once for each
        pair), and `conflict/against/A/B`: share of A's samples with an advantage whose gradient
        has a negative cosine with the mean gradient of B (B = A too).
    """
    names = sorted(set(sources.tolist()))
    weights = np.stack([problem.average * (sources == name) for name in names])
    products = weights @ problem.gram  # (sources, N)
    overlaps = products @ weights.T
    lengths = np.sqrt(np.maximum(np.diag(overlaps), 0.0))
    cosines = ratio(overlaps, lengths[:, None] * lengths)
    angles = ratio(products, lengths[:, None] * problem.norms)
    voices = problem.positive | problem.negative
    measures = {}
    for row, first in enumerate(names):
        mine = voices & (sources == first)
        for column, second in enumerate(names):
            pair = f"{first.replace('/', '-')}/{second.replace('/', '-')}"
            if column > row:
                measures[f"conflict/between/{pair}"] = float(cosines[row, column])
            if mine.any():
                share = np.mean(angles[column, mine] < -CONFLICT_COSINE)
                measures[f"conflict/against/{pair}"] = float(share)
    return measures


def ratio(numerator: np.ndarray, denominator: np.ndarray | float) -> np.ndarray:
    """Quotient, 0 where the denominator is 0 (a zero vector has no angle: no conflict)."""
    denominator = np.asarray(denominator, dtype=np.float64)
    return np.divide(
        numerator, denominator, out=np.zeros_like(numerator, dtype=float), where=denominator > 0
    )
