"""Drawing tokens from logits: which may be drawn, and which one a uniform number stands for."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from capo_ds.rollout.base import WHOLE, Truncation

BLOCK = 512  # tokens that are added up together
FLOOR = torch.finfo(torch.float32).min


def draw(
    logits: Tensor, uniform: Tensor, temperature: float, truncation: Truncation = WHOLE
) -> tuple[Tensor, Tensor, Tensor]:
    """Token, its log-probability, and the distribution's entropy, for each row of logits."""
    all_log_probs = torch.log_softmax(logits / (temperature or 1.0), -1)
    if temperature and truncation != WHOLE:
        all_log_probs = truncate(all_log_probs, truncation)
    probs = all_log_probs.exp()
    tokens = drawn(probs, uniform) if temperature else logits.argmax(-1)
    log_probs = all_log_probs.gather(1, tokens[:, None]).squeeze(1)
    # vecdot: one reading of both. What cannot be drawn has -inf beside its 0.
    finite = all_log_probs if truncation == WHOLE else all_log_probs.clamp(min=FLOOR)
    entropy = -torch.linalg.vecdot(probs, finite)
    return tokens, log_probs, entropy


def drawn(probs: Tensor, uniform: Tensor) -> Tensor:
    """The least token of each row whose cumulative probability exceeds the row's number.

    Sums are in float64. Of a large vocabulary first those of blocks, then within the block that the
    number falls into, so that no cumulative sum over all of it is ever written.

    probs: (rows, vocabulary). uniform: (rows,), float64, in [0, 1).
    """
    rows = torch.arange(len(probs), device=probs.device)
    size = BLOCK if probs.shape[1] > 8 * BLOCK else probs.shape[1]
    blocks = torch.nn.functional.pad(probs, (0, -probs.shape[1] % size)).unflatten(1, (-1, size))
    sums = blocks.sum(2, dtype=torch.float64).cumsum(1)
    # Scaled to the sum actually reached, so that rounding never points beyond the last token.
    point = uniform[:, None] * sums[:, -1:]
    block = torch.searchsorted(sums, point, right=True)
    before = torch.nn.functional.pad(sums, (1, 0)).gather(1, block)
    within = blocks[rows, block[:, 0]]
    token = torch.searchsorted(within.double().cumsum(1) + before, point, right=True)[:, 0]
    # The sum within may fall short of the block's by rounding: then the last that can be drawn.
    last = size - 1 - (within > 0).int().flip(1).argmax(1)
    return block[:, 0] * size + token.minimum(last)


def truncate(log_probs: Tensor, truncation: Truncation) -> Tensor:
    """The distributions (rows, vocabulary) on the tokens that may be drawn; -inf elsewhere.

    As vLLM does: min_p, then top_k (equals of the last stay), then the least number of likeliest
    tokens that have top_p of what is left.
    """
    if truncation.min_p:
        least = log_probs.amax(-1, keepdim=True) + math.log(truncation.min_p)
        log_probs = log_probs.masked_fill(log_probs < least, -math.inf)
    if 0 < truncation.top_k < log_probs.shape[-1]:
        least = log_probs.topk(truncation.top_k, -1).values[:, -1:]
        log_probs = log_probs.masked_fill(log_probs < least, -math.inf)
    if truncation.top_p < 1:
        ordered, places = log_probs.sort(-1)
        below = ordered.double().softmax(-1).cumsum(-1) <= 1 - truncation.top_p
        below[:, -1] = False
        log_probs = log_probs.masked_fill(below.scatter(-1, places, below), -math.inf)
    return log_probs.log_softmax(-1)
