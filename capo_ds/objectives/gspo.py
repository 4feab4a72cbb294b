"""Group Sequence Policy Optimization: one ratio a response."""

from __future__ import annotations

from typing import TYPE_CHECKING

from capo_ds.objectives.base import Surrogate, Tokens
from capo_ds.objectives.grpo import clipped_surrogate

if TYPE_CHECKING:
    from capo_ds.config import ObjectiveConfig


def gspo(tokens: Tokens, settings: ObjectiveConfig) -> Surrogate:
    """min(s A, clip(s, 1 - eps_low, 1 + eps_high) A) with s = exp(mean over tokens of log r).

    Zheng et al. 2025, eqs. 5 and 7. Every token of a response has the response's term, so that
    `loss_aggregation: sequence_mean` gives the paper's objective.
    """
    lengths = tokens.mask.sum(1, keepdim=True).clamp(min=1)
    mean = (tokens.log_ratio * tokens.mask).sum(1, keepdim=True) / lengths
    return clipped_surrogate(mean, tokens.advantages[:, None], settings)
