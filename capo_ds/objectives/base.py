"""What a surrogate of the policy objective takes and returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0  # exp of it is 5e8; that of 89 is infinite in float32


@dataclass(frozen=True)
class Tokens:
    """B responses in a micro-batch, T tokens wide.

    log_probs: (B, T) of the policy, with gradient.
    behaviour: (B, T) of the policy that sampled; equal to `log_probs` where nothing has been
        learned since.
    advantages: (B,).
    mask: (B, T) of bool, the tokens that count.
    """

    log_probs: Tensor
    behaviour: Tensor
    advantages: Tensor
    mask: Tensor

    @property
    def log_ratio(self) -> Tensor:
        """(B, T) log of policy over behaviour, with gradient; as it is, however large."""
        return self.log_probs - self.behaviour


class Surrogate(NamedTuple):
    """The terms of the objective before importance weights and KL; all (B, T) or (B, 1).

    value: to maximise; with gradient.
    clipped: of bool, a bound is active (metric `loss/clip_fraction`); None: nowhere.
    silent: of bool, the term has no gradient; None: nowhere. A response all of whose tokens are
        silent counts in g_0 and is neutral in the aggregator's program.
    """

    value: Tensor
    clipped: Tensor | None = None
    silent: Tensor | None = None


def ratio_of(log_ratio: Tensor) -> Tensor:
    """exp, which stops at exp(20), as in verl: beyond it there is no gradient, and the value is
    that of 20. (In float32 exp(89) is infinite, and its gradient NaN even where a clip takes it
    out.) Downwards nothing overflows, and nothing is changed."""
    return torch.exp(log_ratio.clamp(max=MAX_LOG_RATIO))
