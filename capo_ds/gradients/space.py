"""Memory that the gradients of one update after another are kept in."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class Space:
    """One flat piece of memory, kept from update to update and only ever made larger.

    Fresh memory costs more than what is written to it: a CPU's system clears it page by page, a
    GPU's driver pins it page by page.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, pinned: bool = False):
        self._flat = torch.empty(0, device=device, dtype=dtype)
        self._pinned = pinned

    def rows(self, samples: int, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """(samples, o, i) of each factor, with whatever stands in the memory; what was handed out
        before is written over."""
        sizes = [samples * math.prod(shape) for shape in shapes]
        if self._flat.numel() < sum(sizes):
            like = {"device": self._flat.device, "dtype": self._flat.dtype}
            self._flat = self._flat.new_empty(0)  # given back before more is asked for
            self._flat = torch.empty(sum(sizes), pin_memory=self._pinned, **like)
        parts = self._flat[: sum(sizes)].split(sizes)
        return [part.view(samples, *shape) for part, shape in zip(parts, shapes, strict=True)]
