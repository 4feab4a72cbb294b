"""Clipped importance-sampling weights: every token keeps a gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING

from capo_ds.objectives.base import Surrogate, Tokens, ratio_of

if TYPE_CHECKING:
    from capo_ds.config import ObjectiveConfig


def cispo(tokens: Tokens, settings: ObjectiveConfig) -> Surrogate:
    """sg(clip(r, 1 - eps_low, 1 + eps_high)) A log pi, token by token; sg stops the gradient.

    MiniMax-M1 (Chen et al. 2025), eqs. 4 and 5. REINFORCE with bounded weights: a clip limits a
    token's gradient and never takes it away. The paper has no lower clip: clip_low 1.
    """
    ratio = ratio_of(tokens.log_ratio.detach())
    weight = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    return Surrogate(weight * tokens.advantages[:, None] * tokens.log_probs, weight != ratio)
