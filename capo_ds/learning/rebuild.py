"""From coefficients to a rank's part of g~, by the gradients that it has kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from capo_ds.aggregation.problem import Aggregation
from capo_ds.aggregation.update import Solved
from capo_ds.distributed import comm
from capo_ds.distributed.gram import norms_of_sums
from capo_ds.gradients.store import Store
from capo_ds.learning.passes import PolicyPasses
from capo_ds.telemetry.metrics import Measured

SKETCHED_NORMS = ("sketch/vanilla_norm", "sketch/direction_norm")  # as the Gram matrix has them


@dataclass(frozen=True)
class Rebuilt:
    """This rank's part of g~, in the parameters' shapes; the ranks' parts add up to it."""

    gradient: list[Tensor]
    measures: Measured


def rebuild(
    solved: Solved, mine: slice, store: Store, blocks: list[int], passes: PolicyPasses
) -> Rebuilt:
    """This rank's part of g~ = sum_i c_i g_i; on a trust region's boundary, where the Gram matrix
    is of sketches, of g_0 + C ||g_0|| dg / ||dg|| with the true norms (all ranks).

    mine: this rank's samples among all. blocks: of each factor.
    """
    combine = _combination(mine, store, blocks)
    result = solved.results[0]
    with passes.around("reconstruction"):
        if not (result.on_boundary and store.sketch):
            return Rebuilt(combine(solved.coefficients), {})
        assert result.xi is not None and result.average is not None  # set with `on_boundary`
        direction, mean = combine(result.xi[None]), combine(result.average[None])
    with comm.collective("norms"):
        norms = norms_of_sums(mean, direction)
    assert solved.sketched_norms is not None
    measures: Measured = {}
    for name, sketched, norm in zip(SKETCHED_NORMS, solved.sketched_norms, norms, strict=True):
        measures[name] = sketched
        if norm > 0:
            measures[f"{name}_ratio"] = sketched / norm
    return Rebuilt(_recovered(result, mean, direction, norms), measures)


def _recovered(
    result: Aggregation, mean: list[Tensor], direction: list[Tensor], norms: list[float]
) -> list[Tensor]:
    """g~ = centre + C ||g_0|| dg / ||dg||, part by part; norms: of g_0 and dg."""
    assert result.base is not None  # set with `on_boundary`
    scale = result.direction_scale(*norms)
    if not result.base.any():  # the norm ball is centred on 0
        return [scale * part for part in direction]
    return [part.add(toward, alpha=scale) for part, toward in zip(mean, direction, strict=True)]


def _combination(
    mine: slice, store: Store, blocks: list[int]
) -> Callable[[np.ndarray], list[Tensor]]:
    """This rank's part of sum_i c_i g_i, from all samples' coefficients (blocks, N)."""

    def combine(coefficients: np.ndarray) -> list[Tensor]:
        local = torch.tensor(coefficients[:, mine], dtype=torch.float32, device=comm.device())
        alike = float(coefficients[0, 0]) if np.ptp(coefficients) == 0 else None
        return store.combine(local[blocks], alike)

    return combine
