"""What a user can do where no gradient is finite."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from capo_ds.config import Config
from capo_ds.parts import MARK
from capo_ds.run_folder import adapters


class NotFiniteError(FloatingPointError):
    """A gradient is NaN or Inf; the text says what to do."""

    told_whole = True  # so that no traceback of ours is shown beside it


def not_finite(what: str, config: Config) -> NotFiniteError:
    """The error, with the remedy; `what`: is NaN or Inf.

    A continuation cannot lower the rate, so the remedy is a run of its own from saved factors.
    """
    saved = adapters(Path(config.train.output_dir))
    there = f", and model.adapter: {saved[-1]} or an earlier one" if saved else ""
    anew = f"start anew with a lower optimizer.learning_rate, another train.output_dir{there}"
    if MARK in config.objective.name:
        anew = (
            f"objective.name: see whether {config.objective.name} gives terms, or gradients of "
            f"them, that are not finite; if not, {anew}"
        )
    return NotFiniteError(f"{what}; {anew}")


def check_finite(gradient: Sequence[Tensor], config: Config) -> None:
    """Raises `NotFiniteError` for a part of g~ with NaN or Inf."""
    # Stacked, so that a GPU is waited for once and not once per factor.
    if not torch.stack([torch.isfinite(part).all() for part in gradient]).all():
        out = "" if config.uses_per_sample_gradients else (
            " (aggregator: capo leaves out the samples that have it)"
        )  # fmt: skip
        raise not_finite(f"NaN or Inf in the gradient{out}", config)
