"""The policy objective of a response: a surrogate, importance weights, KL, and weights of tokens.

All objectives are to be *maximised*: gradients taken of them are ascent directions. The surrogates
are parts, one a file in `capo_ds/objectives`; advantages are in `capo_ds/advantages.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from capo_ds.advantages import advantages
from capo_ds.config import ObjectiveConfig
from capo_ds.objectives.base import MAX_LOG_RATIO, Surrogate, Tokens, ratio_of
from capo_ds.objectives.own import OwnObjective, checked
from capo_ds.parts import MARK
from capo_ds.plugins import make_part

Objective = Callable[[Tokens, ObjectiveConfig], Surrogate]


def make_objective(settings: ObjectiveConfig) -> Objective:
    """The surrogate that `objective.name` names. Raises `ConfigError` if it cannot be had."""
    name = settings.name
    part = make_part("objective", "objective.name", name, settings.options, first=2)
    return OwnObjective(name, part) if MARK in name else part


def step_advantages(
    objective: Objective, settings: ObjectiveConfig, rewards: Tensor, rounding: Tensor
) -> Tensor:
    """(prompts, G) advantages of a step's rewards (prompts, G): by the settings, or by the method
    `advantages(rewards)` of an objective of the user's that has one.

    Raises:
        PartError: that gives no such numbers.
    """
    if isinstance(objective, OwnObjective) and objective.has_advantages:
        return objective.advantages(rewards)
    return advantages(rewards, settings.baseline, settings.scale_advantages, rounding)


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


def sampler_behaviour(
    proximal: Tensor,  # (B, T) the trainer's log-probabilities at the start of the step
    log_ratio: Tensor,  # (B, T) of them to the sampler's
    correction: str,
    cap: float,
) -> Tensor:  # (B, T)
    """The sampler's log-probabilities mu; with the correction "token" no less than those of
    pi_proximal / cap.

    The ratio to them is pi / mu = (pi / pi_proximal) (pi_proximal / mu), whose second factor is the
    importance weight of `importance_weights`, and so truncated in the same way.
    """
    if correction == "token":
        log_ratio = log_ratio.clamp(max=math.log(cap))
    return proximal - log_ratio


class ObjectiveTerms(NamedTuple):
    """What `token_objective` returns; all (B, T)."""

    value: Tensor  # the term to maximise
    ratio: Tensor  # r of each token, detached
    kl: Tensor  # k3 estimate of KL(policy || reference), detached
    clipped: Tensor  # bool: a bound is active
    silent: Tensor  # bool: the surrogate has no gradient


def token_objective(
    objective: Objective,
    tokens: Tokens,
    reference: Tensor | None,  # (B, T) log-probabilities, or None when kl_weight is 0
    settings: ObjectiveConfig,
    importance: Tensor | None = None,  # (B, T) or (B, 1), without gradient: see above
) -> ObjectiveTerms:
    """Surrogate times importance weights, minus beta times the k3 KL estimate, token by token.

    w S - beta (exp(l_ref - l) - (l_ref - l) - 1): Schulman's note on approximating KL for k3. The
    exponent stops at 20, as that of `ratio_of`.

    Raises:
        PartError: a surrogate of the user's fails, is no term of these tokens, or has no gradient.
    """
    value, *marks = checked(objective(tokens, settings), tokens.log_probs)
    nowhere = torch.zeros_like(value, dtype=torch.bool)
    clipped, silent = (nowhere if mark is None else mark for mark in marks)
    if importance is not None:
        value = value * importance
    if reference is None:
        kl = torch.zeros_like(value)
    else:
        difference = (reference - tokens.log_probs).clamp(max=MAX_LOG_RATIO)
        kl = torch.exp(difference) - difference - 1
        value = value - settings.kl_weight * kl
    ratio = ratio_of(tokens.log_ratio.detach())
    return ObjectiveTerms(value, ratio, kl.detach(), clipped, silent)
