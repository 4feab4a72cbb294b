"""Group advantages and the clipped policy objective (GRPO and its variants).

All objectives are to be *maximised*: gradients taken of them are ascent directions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from capo_ds.config import ObjectiveConfig
from capo_ds.precision import common_steps, roundings

MAX_LOG_RATIO = 20.0  # exp of it is 5e8; that of 89 is infinite in float32
ROUNDINGS = 4.0  # how many roundings of its size a reward may have behind it


def group_advantages(rewards: Tensor, scale: bool, rounding: Tensor | None = None) -> Tensor:
    """Advantages within each group (DeepSeekMath, eq. 3 ff.; Dr. GRPO with `scale` off).

    The standard deviation is the sample one (n - 1), as in TRL and verl. A sample whose reward
    differs from its group's mean by rounding alone has advantage 0, and so have all samples of a
    group whose rewards differ among themselves by no more: noise has no sign. "By rounding alone"
    is: by at most four times the largest `rounding` in the group. Rewards that are all multiples
    of a larger number than that (1e6 and 1e6 + 1, in any dtype) are exact, and only the rounding
    of the mean, in float64, counts against them.

    Args:
        rewards: (prompts, G); float64 where they are at hand, since casting is rounding.
        scale: divide by the standard deviation.
        rounding: (prompts, G), the rounding of the terms that each reward was added up from, see
            `capo_ds.precision`; of the rewards themselves if not given.

    Returns:
        (prompts, G) in the dtype of `rewards`.

    Raises:
        ValueError: a reward is NaN or infinite.
    """
    exact = rewards.detach().double().cpu()
    if not exact.isfinite().all():
        raise ValueError("a reward is NaN or infinite")
    if rounding is None:
        rounding = torch.from_numpy(roundings(exact.numpy()))
        if rewards.dtype in (torch.float16, torch.bfloat16):
            rounding = exact.abs() * torch.finfo(rewards.dtype).eps
    noise = ROUNDINGS * rounding.double().cpu().amax(1, keepdim=True)
    size = exact.abs().amax(1, keepdim=True)
    arithmetic = ROUNDINGS * torch.finfo(torch.float64).eps * size
    on_a_grid = torch.from_numpy(common_steps(exact.numpy()))[:, None] > noise
    noise = torch.where(on_a_grid, arithmetic, noise.maximum(arithmetic))

    centred = exact - exact.mean(1, keepdim=True)
    equal = exact.amax(1, keepdim=True) - exact.amin(1, keepdim=True) <= noise
    centred = torch.where(equal | (centred.abs() <= noise), 0.0, centred)
    if scale:
        # In units of the largest deviation, whose square is always a float64 number.
        unit = centred.abs().amax(1, keepdim=True)
        centred = centred / torch.where(unit > 0, unit, 1.0)
        deviation = (centred.square().sum(1, keepdim=True) / max(exact.shape[1] - 1, 1)).sqrt()
        centred = centred / torch.where(unit > 0, deviation, 1.0)
    return centred.to(rewards)


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
    return log_ratio.clamp(max=MAX_LOG_RATIO).exp().clamp(max=cap)


class ObjectiveTerms(NamedTuple):
    """What `token_objective` returns; all (B, T)."""

    value: Tensor  # the term to maximise
    ratio: Tensor  # r, detached
    kl: Tensor  # k3 estimate of KL(policy || reference), detached
    clipped: Tensor  # bool: a clip is active, the surrogate has no gradient


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
    DAPO eq. 10 for two clips; Schulman's note on approximating KL for k3. With a dual clip c the
    surrogate of a negative advantage is max(min(...), c A): Ye et al. 2020, eq. 5.

    Both exponents stop at 20, as in verl: beyond it a token has no gradient, and its value that
    of 20. (In float32 exp(89) is infinite, and its gradient NaN even where the clip takes it out.)
    Downwards nothing overflows, and nothing is changed.
    """
    log_ratio = log_probs - behaviour_log_probs
    ratio = torch.exp(log_ratio.clamp(max=MAX_LOG_RATIO))
    limited = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    advantage = advantages[:, None]
    value = torch.minimum(ratio * advantage, limited * advantage)
    clipped = (ratio * advantage > limited * advantage) | (log_ratio > MAX_LOG_RATIO)
    if config.dual_clip is not None:
        floor = config.dual_clip * advantage
        beyond = (advantage < 0) & (value < floor)
        value = torch.where(beyond, floor, value)
        clipped |= beyond
    if importance is not None:
        value = value * importance
    if reference_log_probs is None:
        kl = torch.zeros_like(value)
    else:
        difference = (reference_log_probs - log_probs).clamp(max=MAX_LOG_RATIO)
        kl = torch.exp(difference) - difference - 1
        value = value - config.kl_weight * kl
    return ObjectiveTerms(value, ratio.detach(), kl.detach(), clipped.detach())
