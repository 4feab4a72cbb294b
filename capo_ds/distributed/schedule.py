"""The learning rate over a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from capo_ds.config import OptimizerConfig


def learning_rate_factor(step: int, config: OptimizerConfig, steps: int) -> float:
    """Learning rate of optimizer step `step` (from 0) as a share of the peak.

    A linear rise over `warmup_steps`, whose first step already learns; then the schedule, down to
    0 just after the last step.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    left = max(0.0, (steps - step) / max(1, steps - config.warmup_steps))
    return left if config.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * left))


def make_schedule(config: OptimizerConfig, steps: int) -> Callable[[Optimizer], LambdaLR]:
    """What `deepspeed.initialize` takes; `steps` optimizer steps are the whole run."""
    return partial(LambdaLR, lr_lambda=partial(learning_rate_factor, config=config, steps=steps))
