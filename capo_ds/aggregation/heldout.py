"""Conflict on samples that an aggregate was not made from, from the same Gram matrix.

Whatever is fitted to N samples looks good on these. So each half of the prompts is aggregated
alone, and measured on the other half: what an update does for responses it has not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from capo_ds.aggregation.diagnostics import conflicting, ratio
from capo_ds.aggregation.problem import GramProblem

# From the blocks of a problem and the samples' prompts to coefficients (blocks, N).
Fit = Callable[[Sequence[GramProblem], np.ndarray], np.ndarray]


def halves(groups: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """(N,) of bool: the samples of one half of the prompts, drawn at random.

    groups: (N,) the prompt of each sample. The drawing depends on the set of prompts alone, not
    on the order in which ranks hold them.
    """
    names = np.unique(groups)
    return np.isin(groups, random.permutation(names)[: len(names) // 2])


def restricted(problem: GramProblem, kept: np.ndarray) -> GramProblem:
    """The problem of the samples `kept`, (N,) of bool, with their weights in g_0."""
    return GramProblem(
        gram=problem.gram[np.ix_(kept, kept)],
        positive=problem.positive[kept],
        negative=problem.negative[kept],
        average=problem.average[kept],
    )


def heldout(
    blocks: Sequence[GramProblem], groups: np.ndarray, first: np.ndarray, fit: Fit
) -> dict[str, float]:
    """Measures of aggregates on samples they were not made from, both ways round.

    Args:
        blocks: the same N samples in each; a gradient is made of its blocks.
        groups: (N,) prompts.
        first: (N,) of bool, one half of the prompts.
        fit: the aggregator.

    Returns:
        All under `conflict/`: `heldout_{positive,negative,all}_{before,after}`, the share of
        held-out samples of that kind whose cosine with the other half's g_0 (before) or aggregate
        (after) is below -1e-6; `heldout_cosine` and `heldout_cosine_before`, the cosine of that
        aggregate and of that g_0 with the held-out g_0 (in proportion to the progress that a small
        step makes on other prompts); `heldout_alignment`, the mean cosine with held-out samples'
        own gradients.
        Means over the two halves; a key without samples is left out.
    """
    found: dict[str, list[float]] = {}
    for fitted in (first, ~first):
        for name, value in _one_way(blocks, groups, fitted, fit).items():
            found.setdefault(f"conflict/{name}", []).append(value)
    return {name: float(np.mean(values)) for name, values in found.items()}


def _one_way(
    blocks: Sequence[GramProblem], groups: np.ndarray, fitted: np.ndarray, fit: Fit
) -> dict[str, float]:
    other = ~fitted
    parts = [restricted(block, fitted) for block in blocks]
    if not any((part.positive | part.negative).any() for part in parts):
        return {}
    average = np.stack([part.average for part in parts])
    after = fit(parts, groups[fitted])
    measures = {}
    for when, coefficients in (("before", average), ("after", after)):
        cosines, with_mean = _cosines(blocks, fitted, coefficients)
        positive, negative = blocks[0].positive[other], blocks[0].negative[other]
        for name, share in conflicting(cosines, positive, negative).items():
            measures[f"heldout_{name}_{when}"] = share
        suffix = "" if when == "after" else "_before"
        measures[f"heldout_cosine{suffix}"] = with_mean
        if (positive | negative).any():
            measures[f"heldout_alignment{suffix}"] = float(cosines[positive | negative].mean())
    return measures


def _cosines(
    blocks: Sequence[GramProblem], fitted: np.ndarray, coefficients: np.ndarray
) -> tuple[np.ndarray, float]:
    """Cosines of sum_i c_i g_i over the fitted samples with each other sample, and with their g_0.

    coefficients: (blocks, fitted samples).
    """
    other, products, overlap = ~fitted, np.zeros(int((~fitted).sum())), 0.0
    squares, own, means = 0.0, np.zeros(len(products)), 0.0
    for block, weights in zip(blocks, coefficients, strict=True):
        across = block.gram[np.ix_(other, fitted)] @ weights
        held = block.average[other]
        products += across
        overlap += float(held @ across)
        squares += float(weights @ block.gram[np.ix_(fitted, fitted)] @ weights)
        means += float(held @ block.gram[np.ix_(other, other)] @ held)
        own += np.diag(block.gram)[other]
    length = np.sqrt(max(squares, 0.0))
    cosines = ratio(products, np.sqrt(np.maximum(own, 0.0)) * length)
    return cosines, float(ratio(np.asarray(overlap), length * np.sqrt(max(means, 0.0))))


def total(blocks: Sequence[GramProblem]) -> GramProblem:
    """The whole gradients: inner products are sums over blocks."""
    if len(blocks) == 1:
        return blocks[0]
    return replace(blocks[0], gram=np.sum([block.gram for block in blocks], axis=0))
