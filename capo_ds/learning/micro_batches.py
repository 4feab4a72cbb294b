"""How a rank's rows are shared out to passes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from capo_ds.config.training import TrainConfig

# What a pass costs beside its positions, as a share of `micro_batch_tokens`: so much padding is
# suffered before there is one more.
PASS = 1 / 32


def micro_batches(widths: Sequence[int], train: TrainConfig) -> list[range]:
    """The rows of each pass, in order. widths: tokens of each row.

    A pass holds `micro_batch_size` rows. Or, with `micro_batch_tokens`, as many as fit into that
    many positions, each row taking as many as the longest of the pass, but one row at least; the
    cuts are those that cost the fewest positions, a pass counted as `PASS` of its room.
    """
    if train.micro_batch_tokens is None:
        size = train.micro_batch_size
        return [range(i, min(i + size, len(widths))) for i in range(0, len(widths), size)]
    return _cheapest(widths, train.micro_batch_tokens)


def _cheapest(widths: Sequence[int], room: int) -> list[range]:
    """By dynamic programming: the cheapest way to share out the rows before each cut."""
    costs, cuts = [0.0], [0]  # of the rows before a cut; where their last pass begins
    for end in range(1, len(widths) + 1):
        cost, cut, widest = math.inf, end - 1, 0
        for first in reversed(range(end)):
            widest = max(widest, widths[first])
            positions = (end - first) * widest
            if end - first > 1 and positions > room:
                break
            if costs[first] + positions + PASS * room < cost:
                cost, cut = costs[first] + positions + PASS * room, first
        costs.append(cost)
        cuts.append(cut)
    passes, end = [], len(widths)
    while end:
        passes.append(range(cuts[end], end))
        end = cuts[end]
    return passes[::-1]
