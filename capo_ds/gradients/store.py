"""What one rank keeps of its samples' gradients: all of them, or their sketches and their sum."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from capo_ds.gradients.sketch import Sketch
from capo_ds.gradients.space import Space

Shapes = list[tuple[int, int]]  # (o, i) of each factor
# Of gradients that a sketch store keeps until there are many to be sketched: little beside a model,
# and of a small one all of an update.
HELD_BYTES = 1 << 26


class Store(Protocol):
    """Takes the gradients of n samples in, factor by factor, and gives back what makes their Gram
    matrix, and weighted sums of them."""

    @property
    def sketch(self) -> Sketch | None:
        """Through which samples are compared; None: as they are."""
        ...

    def write(self, index: int, first: int, output_gradients: Tensor, inputs: Tensor) -> None:
        """Samples `first`, `first + 1`, ... have the gradient sum_t dy_t x_t' at factor `index`.

        output_gradients: (B, T, o). inputs: (B, T, i).
        """

    def matrices(self) -> Iterator[Tensor]:
        """Blocks of columns (n, D): rows over all blocks are the gradients, or their sketches."""
        ...

    def combine(self, coefficients: Tensor, alike: float | None = None) -> list[Tensor]:
        """sum_i c_i g_i, factor by factor in the parameters' shapes, in float32 or wider.

        coefficients: (n,), or (factors, n) with a row for each factor.
        alike: the coefficient of all samples of all ranks, where they have but one.
        """
        ...

    def discard(self, samples: Tensor) -> None:
        """Keep a NaN of some samples out of later sums. samples: (n,) of bool, on the CPU."""


class GradientStore:
    """Every gradient, as one (n, o, i) tensor per factor; with a sketch, compared through that.

    space: that stores use one after another; see `new_space`.
    """

    def __init__(
        self,
        shapes: Shapes,
        samples: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        sketch: Sketch | None = None,
        space: Space | None = None,
    ):
        self.rows = (space or self.new_space(device, dtype)).rows(samples, shapes)
        self.sketch = sketch

    @staticmethod
    def new_space(device: torch.device, dtype: torch.dtype) -> Space:
        """Where such a store keeps its rows."""
        return Space(device, dtype)

    def write(self, index: int, first: int, output_gradients: Tensor, inputs: Tensor) -> None:
        _outer_sums(output_gradients, inputs, self.rows[index][first : first + len(inputs)])

    def matrices(self) -> Iterator[Tensor]:
        if self.sketch is not None:
            yield self.sketch(self._on_device())
            return
        for rows in self._on_device():
            yield rows.flatten(1)

    def combine(self, coefficients: Tensor, alike: float | None = None) -> list[Tensor]:
        wide = map(_widened, self._on_device())
        rows = coefficients.expand(len(self.rows), -1)
        return [
            torch.einsum("n,noi->oi", row.to(factor.dtype), factor)
            for row, factor in zip(rows, wide, strict=True)
        ]

    def discard(self, samples: Tensor) -> None:
        if samples.any():
            which = samples.nonzero().squeeze(1).to(self.rows[0].device)
            for rows in self.rows:
                rows.index_fill_(0, which, 0)

    def _on_device(self) -> Iterator[Tensor]:
        yield from self.rows


class HostStore(GradientStore):
    """Every gradient, in host memory; on a GPU pinned, and copied beside the computation.

    Gradients leave the device on a stream of their own while the backward pass goes on; each
    factor comes back while the one before it is worked on.
    """

    def __init__(
        self,
        shapes: Shapes,
        samples: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        sketch: Sketch | None = None,
        space: Space | None = None,
    ):
        super().__init__(shapes, samples, device, dtype, sketch, space)
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @staticmethod
    def new_space(device: torch.device, dtype: torch.dtype) -> Space:
        return Space(torch.device("cpu"), dtype, pinned=device.type == "cuda")

    def write(self, index: int, first: int, output_gradients: Tensor, inputs: Tensor) -> None:
        if self._stream is None:
            super().write(index, first, output_gradients, inputs)
            return
        rows = self.rows[index][first : first + len(inputs)]
        made = torch.empty_like(rows, device=self.device)
        _outer_sums(output_gradients, inputs, made)
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            rows.copy_(made, non_blocking=True)
        made.record_stream(self._stream)  # not to be reused before it is copied

    def discard(self, samples: Tensor) -> None:
        if self._stream is not None and samples.any():
            self._stream.synchronize()
        super().discard(samples)

    def _on_device(self) -> Iterator[Tensor]:
        if self._stream is None:
            yield from self.rows
            return
        computing = torch.cuda.current_stream(self.device)
        coming = self._fetch(self.rows[0])
        for following in [*self.rows[1:], None]:
            computing.wait_stream(self._stream)
            rows = coming
            rows.record_stream(computing)
            if following is not None:
                coming = self._fetch(following)
            yield rows

    def _fetch(self, rows: Tensor) -> Tensor:
        with torch.cuda.stream(self._stream):
            return rows.to(self.device, non_blocking=True)


class SketchStore:
    """The sketches (n, k), and the sum of all gradients (so that g_0 costs no further pass).

    weighted_sum: gives other sums, from coefficients (n,), by another backward pass. The ranks make
    it together where their passes are collective.

    Where the sketch is `for_many`, the gradients of one pass wait for those of the next, as many as
    there is room for, as long as samples come in their order.
    """

    def __init__(
        self,
        shapes: Shapes,
        samples: int,
        device: torch.device,
        sketch: Sketch,
        weighted_sum: Callable[[Tensor], list[Tensor]],
    ):
        self.sketch, self.weighted_sum = sketch, weighted_sum
        self.sketches = torch.zeros(samples, sketch.dim, device=device)
        self.total = [torch.zeros(shape, device=device) for shape in shapes]
        each = sum(map(math.prod, shapes))
        room = held_samples(samples, each) if sketch.for_many else 0
        self._held = [torch.empty(room, *shape, device=device) for shape in shapes]
        self._waiting = [range(0)] * len(shapes)  # the samples whose gradients are held

    def write(self, index: int, first: int, output_gradients: Tensor, inputs: Tensor) -> None:
        total = self.total[index]
        total.addmm_(output_gradients.flatten(0, 1).T.to(total), inputs.flatten(0, 1).to(total))
        held, last = self._held[index], first + len(inputs)
        waiting = self._waiting[index]
        if first != waiting.stop or len(waiting) + len(inputs) > len(held):
            self._sketch_held(index)
        if len(inputs) > len(held):
            self.sketches[first:last] += self.sketch.project_outer(index, output_gradients, inputs)
            return
        waiting = self._waiting[index] or range(first, first)
        room = held[len(waiting) : len(waiting) + len(inputs)]
        _outer_sums(output_gradients, inputs, room)
        self._waiting[index] = range(waiting.start, last)

    def _sketch_held(self, index: int) -> None:
        waiting, self._waiting[index] = self._waiting[index], range(0)
        if waiting:
            rows = self.sketches[waiting.start : waiting.stop]
            rows += self.sketch.project(index, self._held[index][: len(waiting)])

    def matrices(self) -> Iterator[Tensor]:
        for index in range(len(self._held)):
            self._sketch_held(index)
        yield self.sketches

    def combine(self, coefficients: Tensor, alike: float | None = None) -> list[Tensor]:
        """Takes one coefficient a sample: rows of factors must be the same."""
        if alike is not None:
            return [alike * total for total in self.total]
        return self.weighted_sum(coefficients.expand(len(self.total), -1)[0])

    def discard(self, samples: Tensor) -> None:
        """Nothing to do: later sums leave out samples of coefficient 0."""


def held_samples(samples: int, each: int) -> int:
    """Of a rank's samples, whose gradients have `each` numbers, those that wait to be sketched."""
    return min(samples, HELD_BYTES // (4 * each))


def _outer_sums(output_gradients: Tensor, inputs: Tensor, out: Tensor) -> None:
    """sum_t dy_t x_t' of each sample, in the widest of the dtypes: a store rounds results only."""
    dtype = torch.promote_types(output_gradients.dtype, inputs.dtype)
    dtype = torch.promote_types(dtype, out.dtype)
    left, right = output_gradients.transpose(1, 2).to(dtype), inputs.to(dtype)
    if len(out) != len(left):  # `bmm` would put its result elsewhere
        raise ValueError(f"gradients of {len(left)} samples, room for {len(out)}")
    if out.dtype == dtype:
        torch.bmm(left, right, out=out)
    else:
        out.copy_(torch.bmm(left, right))


def _widened(rows: Tensor) -> Tensor:
    return rows.to(torch.promote_types(rows.dtype, torch.float32))
