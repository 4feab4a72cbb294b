"""Group advantages and the clipped policy objective (GRPO and its variants).

All objectives are to be *maximised*: gradients taken of them are ascent directions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from capo_ds.config import ObjectiveConfig


def group_advantages(rewards: Tensor, scale: bool) -> Tensor:
    """Advantages within each group (DeepSeekMath, eq. 3 ff.; Dr. GRPO with `scale` off).

    rewards: (prompts, G). The standard deviation is the sample one (n - 1), as in TRL and verl.
    A group of equal rewards has zero advantages.
    """
    centred = rewards - rewards.mean(1, keepdim=True)
    if not scale:
        return centred
    deviation = rewards.std(1, keepdim=True)
    # Equal rewards leave rounding noise in both; their advantage is zero, not noise / noise.
    equal = rewards.amax(1, keepdim=True) == rewards.amin(1, keepdim=True)
    return torch.where(equal, 0.0, centred / deviation)


def token_weights(
    lengths: Tensor,  # (n,) counted completion tokens of this rank's samples
    aggregation: str,
    samples: int,  # N of the mini-batch, over all ranks
    tokens: float,  # counted tokens of the mini-batch, over all ranks
    max_length: int,
) -> Tensor:  # (n,)
    """Weight w_i of every token of sample i, such that J = (1/N) sum_i w_i sum_t term_it.

    So J_i = w_i sum_t term_it is sample i's own objective, and the vanilla gradient g_0 is the
    plain mean of the g_i whatever the aggregation. The weights depend only on totals over all
    ranks, so J does not depend on how samples are split over ranks or micro-batches.
    """
    if aggregation == "sequence_mean":
        return 1.0 / lengths.clamp(min=1)
    if aggregation == "token_mean":
        return torch.full_like(lengths, samples / max(tokens, 1.0))
    if aggregation == "fixed_length":
        return torch.full_like(lengths, 1.0 / max_length)
    raise ValueError(f"unknown loss aggregation {aggregation!r}")


def importance_weights(
    log_ratio: Tensor,  # (B, T): trainer's log-probabilities minus the sampler's; 0 at padding
    correction: str,
    cap: float,
) -> Tensor | None:  # (B, T) or (B, 1)
    """Truncated importance sampling: min(cap, pi_trainer / pi_sampler), of each token or of the
    whole response; None for the correction "none". Both policies have the same weights, but are
    computed by different programs. Yao et al. 2025, "Your efficient RL framework secretly brings
    you off-policy RL training"; Espeholt et al. 2018 for the truncation.
    """
    if correction == "none":
        return None
    if correction == "sequence":
        log_ratio = log_ratio.sum(1, keepdim=True)
    return log_ratio.exp().clamp(max=cap)


class ObjectiveTerms(NamedTuple):
    """What `token_objective` returns; all (B, T)."""

    value: Tensor  # the term to maximise
    kl: Tensor  # k3 estimate of KL(policy || reference), detached
    clipped: Tensor  # bool: the clip is active


def token_objective(
    log_probs: Tensor,  # (B, T), with gradient
    behaviour_log_probs: Tensor,  # (B, T), of the policy that sampled
    reference_log_probs: Tensor | None,  # (B, T), or None when kl_weight is 0
    advantages: Tensor,  # (B,)
    config: ObjectiveConfig,
    importance: Tensor | None = None,  # (B, T) or (B, 1), without gradient: see above
) -> ObjectiveTerms:
    """Clipped surrogate minus beta times the k3 KL estimate, token by token.

    w min(r A, clip(r, 1 - eps_low, 1 + eps_high) A) - beta (exp(l_ref - l) - (l_ref - l) - 1),
    with r = exp(l - l_behaviour) and w the importance weights, or 1. Schulman et al. 2017 eq. 7;
    DAPO eq. 10 for two clips; Schulman's note on approximating KL for k3.
    """
    ratio = torch.exp(log_probs - behaviour_log_probs)
    limited = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    advantage = advantages[:, None]
    value = torch.minimum(ratio * advantage, limited * advantage)
    clipped = (ratio * advantage > limited * advantage).detach()
    if importance is not None:
        value = value * importance
    if reference_log_probs is None:
        return ObjectiveTerms(value, torch.zeros_like(value), clipped)
    difference = reference_log_probs - log_probs
    kl = torch.exp(difference) - difference - 1
    return ObjectiveTerms(value - config.kl_weight * kl, kl.detach(), clipped)
