"""Advantages: what a response's reward is compared with, and in which unit."""

from __future__ import annotations

import torch
from torch import Tensor

from capo_ds.precision import common_steps, roundings

ROUNDINGS = 4.0  # how many roundings of its size a reward may have behind it


def advantages(
    rewards: Tensor,
    baseline: str = "group",
    scale: str = "group",
    rounding: Tensor | None = None,
) -> Tensor:
    """A = (r - b) / s, of all responses of a step.

    baseline b: the mean of the prompt's group (GRPO: DeepSeekMath, eq. 3 ff.), `leave_one_out` the
    mean of its other responses (RLOO: Ahmadian et al. 2024, eq. 10), `batch` the mean of the step
    (REINFORCE++: Hu et al. 2025), or `none`: 0.

    scale s: the standard deviation of the group's rewards (GRPO), of the step's values r - b
    (`batch`: REINFORCE++ with and without the group's baseline), of the step's rewards
    (`batch_rewards`: Liu et al. 2025, "Tricks or traps", and TRL's `scale_rewards: batch`), or
    `none`: 1 (Dr. GRPO: Liu et al. 2025). All are the sample's (n - 1), as in TRL and verl.

    A response whose reward differs from its baseline by rounding alone has advantage 0, and so have
    all of a group (with `batch`, of a step) whose rewards differ among themselves by no more: noise
    has no sign. "By rounding alone" is: by at most four times the largest `rounding` among them.
    Rewards that are all multiples of a larger number than that (1e6 and 1e6 + 1, in any dtype) are
    exact, and only the rounding of the mean, in float64, counts against them.

    Args:
        rewards: (prompts, G); float64 where they are at hand, since casting is rounding.
        baseline, scale: see above.
        rounding: (prompts, G), the rounding of the terms that each reward was added up from, see
            `capo_ds.precision`; of the rewards themselves if not given.

    Returns:
        (prompts, G) in the dtype of `rewards`.

    Raises:
        ValueError: a reward is NaN or infinite, or there is no such baseline or scale.
    """
    exact = rewards.detach().double().cpu()
    if not exact.isfinite().all():
        raise ValueError("a reward is NaN or infinite")
    if rounding is None:
        rounding = torch.from_numpy(roundings(exact.numpy()))
        if rewards.dtype in (torch.float16, torch.bfloat16):
            rounding = exact.abs() * torch.finfo(rewards.dtype).eps
    values = _above(exact, rounding.double().cpu(), baseline)
    return _scaled(values, exact, scale).to(rewards)


def _above(rewards: Tensor, rounding: Tensor, baseline: str) -> Tensor:
    """r - b of (prompts, G), with exact zeros where it is rounding."""
    group = rewards.shape[1]
    if baseline == "group":
        return _centred(rewards, rounding)
    if baseline == "leave_one_out":  # r_i - sum of the others / (G - 1)
        return _centred(rewards, rounding) * (group / max(group - 1, 1))
    if baseline == "batch":
        return _centred(rewards.view(1, -1), rounding.view(1, -1)).view(rewards.shape)
    if baseline == "none":
        return torch.where(rewards.abs() <= ROUNDINGS * rounding, 0.0, rewards)
    raise ValueError(f"no baseline {baseline!r}")


def _scaled(values: Tensor, rewards: Tensor, scale: str) -> Tensor:
    """(prompts, G) in units of a standard deviation; zero where that is zero."""
    if scale == "none":
        return values
    if scale == "group":
        spread, rows = rewards, len(rewards)
    elif scale == "batch":
        spread, rows = values, 1
    elif scale == "batch_rewards":
        spread, rows = rewards, 1
    else:
        raise ValueError(f"no scale {scale!r}")
    # Deviations in units of the largest, whose square is always a float64 number.
    spread = spread.reshape(rows, -1)
    size = spread.abs().amax(1, keepdim=True)
    size = torch.where(size > 1e300, size, 1.0)  # whose sum might be beyond float64
    spread = (spread / size - (spread / size).mean(1, keepdim=True)) * size
    unit = spread.abs().amax(1, keepdim=True)
    squares = (spread / torch.where(unit > 0, unit, 1.0)).square().sum(1, keepdim=True)
    deviation = (squares / max(spread.shape[1] - 1, 1)).sqrt()
    known = (unit > 0) & (deviation > 0)
    unit, deviation = torch.where(known, unit, 1.0), torch.where(known, deviation, 1.0)
    return (values.reshape(rows, -1) / unit / deviation).view(values.shape)


def _centred(rewards: Tensor, rounding: Tensor) -> Tensor:
    """r minus its row's mean; exactly 0 where the difference is rounding. (rows, n)."""
    noise = ROUNDINGS * rounding.amax(1, keepdim=True)
    size = rewards.abs().amax(1, keepdim=True)
    arithmetic = ROUNDINGS * torch.finfo(torch.float64).eps * size
    on_a_grid = torch.from_numpy(common_steps(rewards.numpy()))[:, None] > noise
    noise = torch.where(on_a_grid, arithmetic, noise.maximum(arithmetic))
    mean = rewards.mean(1, keepdim=True)  # whose sum may be beyond float64
    mean = torch.where(mean.isfinite(), mean, (rewards / rewards.shape[1]).sum(1, keepdim=True))
    centred = rewards - mean
    equal = rewards.amax(1, keepdim=True) - rewards.amin(1, keepdim=True) <= noise
    return torch.where(equal | (centred.abs() <= noise), 0.0, centred)
