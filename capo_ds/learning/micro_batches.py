"""How a rank's rows are shared out to passes."""

from __future__ import annotations

from collections.abc import Sequence

from capo_ds.config.training import TrainConfig


def micro_batches(widths: Sequence[int], train: TrainConfig) -> list[range]:
    """The rows of each pass, in order. widths: tokens of each row.

    A pass holds `micro_batch_size` rows; or, with `micro_batch_tokens`, as many as fit into that
    many positions, each row taking as many as the longest of the pass, but one row at least.
    """
    passes: list[range] = []
    first = widest = 0
    for row, width in enumerate(widths):
        rows, wide = row - first + 1, max(widest, width)
        if rows > 1 and _too_large(rows, wide, train):
            passes.append(range(first, row))
            first, wide = row, width
        widest = wide
    return [*passes, range(first, len(widths))] if len(widths) else []


def _too_large(rows: int, width: int, train: TrainConfig) -> bool:
    if train.micro_batch_tokens is None:
        return rows > train.micro_batch_size
    return rows * width > train.micro_batch_tokens
