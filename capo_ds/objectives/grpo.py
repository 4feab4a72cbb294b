"""The clipped surrogate of PPO and GRPO."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from capo_ds.objectives.base import MAX_LOG_RATIO, Surrogate, Tokens, ratio_of

if TYPE_CHECKING:
    from capo_ds.config import ObjectiveConfig


def grpo(tokens: Tokens, settings: ObjectiveConfig) -> Surrogate:
    """min(r A, clip(r, 1 - eps_low, 1 + eps_high) A) of each token's ratio r.

    Schulman et al. 2017, eq. 7; DeepSeekMath (Shao et al. 2024), eq. 3; DAPO (Yu et al. 2025),
    eq. 10, for two clips.
    """
    return clipped_surrogate(tokens.log_ratio, tokens.advantages[:, None], settings)


def clipped_surrogate(log_ratio: Tensor, advantage: Tensor, settings: ObjectiveConfig) -> Surrogate:
    """The same for any log-ratio, of tokens (B, T) or of responses (B, 1); advantage: (B, 1).

    With a dual clip c it is max(min(...), c A) for negative advantages (Ye et al. 2020, eq. 5).
    """
    ratio = ratio_of(log_ratio)
    limited = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    value = torch.minimum(ratio * advantage, limited * advantage)
    clipped = (ratio * advantage > limited * advantage) | (log_ratio > MAX_LOG_RATIO)
    if settings.dual_clip is not None:
        floor = settings.dual_clip * advantage
        beyond = (advantage < 0) & (value < floor)
        value = torch.where(beyond, floor, value)
        clipped = clipped | beyond
    return Surrogate(value, clipped, silent=clipped)
