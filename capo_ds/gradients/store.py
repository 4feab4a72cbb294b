"""What one rank keeps of its samples' gradients: all of them, or their sketches and their sum."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from capo_ds.gradients.sketch import Sketch


class Store(Protocol):
    """Takes the gradients of n samples in, factor by factor, and gives back what makes their Gram
    matrix."""

    def write(self, index: int, first: int, output_gradients: Tensor, inputs: Tensor) -> None:
        """Samples `first`, `first + 1`, ... have the gradient sum_t dy_t x_t' at factor `index`.

        output_gradients: (B, T, o). inputs: (B, T, i).
        """

    def matrices(self) -> list[Tensor]:
        """Blocks of columns (n, D): rows over all blocks are the gradients, or their sketches."""

    def discard(self, samples: Tensor) -> None:
        """Keep a NaN of some samples out of later sums. samples: (n,) of bool."""


class GradientStore:
    """Every gradient, as one (n, o, i) tensor per factor; with a sketch, compared through that."""

    def __init__(self, parameters: list[nn.Parameter], samples: int, sketch: Sketch | None = None):
        self.rows = [parameter.new_empty(samples, *parameter.shape) for parameter in parameters]
        self.sketch = sketch

    def write(self, index: int, first: int, output_gradients: Tensor, inputs: Tensor) -> None:
        rows = self.rows[index][first : first + len(inputs)]
        torch.bmm(output_gradients.transpose(1, 2).to(rows), inputs.to(rows), out=rows)

    def matrices(self) -> list[Tensor]:
        if self.sketch is not None:
            return [self.sketch(self.rows)]
        return [rows.flatten(1) for rows in self.rows]

    def combine(self, coefficients: Tensor) -> list[Tensor]:
        """sum_i c_i g_i, factor by factor in the parameters' shapes. coefficients: (n,)."""
        return [torch.einsum("n,noi->oi", coefficients.to(rows), rows) for rows in self.rows]

    def discard(self, samples: Tensor) -> None:
        for rows in self.rows:
            rows[samples.to(rows.device)] = 0


class SketchStore:
    """The sketches (n, k) alone. Weighted sums of gradients then need another backward pass."""

    def __init__(self, samples: int, sketch: Sketch, device: torch.device):
        self.sketch = sketch
        self.sketches = torch.zeros(samples, sketch.dim, device=device)

    def write(self, index: int, first: int, output_gradients: Tensor, inputs: Tensor) -> None:
        rows = self.sketches[first : first + len(inputs)]
        rows += self.sketch.project_outer(index, output_gradients, inputs)

    def matrices(self) -> list[Tensor]:
        return [self.sketches]

    def discard(self, samples: Tensor) -> None:
        """Nothing to do: the second pass leaves out samples of coefficient 0."""
