"""Sketches that were not chosen, which benchmarks/sketches.py measures beside those that were."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from capo_ds.gradients.sketch import Sketch, SparseSketch, count_sketch


class HadamardSketch(Sketch):
    """Subsampled randomised Hadamard transform sqrt(n/k) R H D of each factor (Tropp 2011)."""

    @torch.no_grad()
    def project(self, index: int, gradients: Tensor) -> Tensor:
        rows = gradients.flatten(1)
        size = 1 << (rows.shape[1] - 1).bit_length()
        generator = torch.Generator().manual_seed(self.seed * 1000 + index)
        signs = torch.randint(0, 2, (size,), generator=generator).float() * 2 - 1
        if size > rows.shape[1]:
            rows = torch.nn.functional.pad(rows, (0, size - rows.shape[1]))
        mixed = _hadamard_transform(rows * signs)
        kept = torch.randperm(size, generator=generator)[: self.dim]
        places = torch.randperm(self.dim, generator=generator)[: len(kept)]
        sketch = rows.new_zeros(len(rows), self.dim)
        sketch[:, places] = mixed.index_select(1, kept)
        return sketch / math.sqrt(len(kept))


class OneNonzeroSketch(SparseSketch):
    """The count sketch alone: s = 1."""

    NONZEROS = 1


class TensorSketch(Sketch):
    """sum_t CS(dy_t) * CS'(x_t), a convolution done by FFT (Pham & Pagh 2013)."""

    def project(self, index: int, gradients: Tensor) -> Tensor:
        raise NotImplementedError("it is measured on outer products only")

    @torch.no_grad()
    def project_outer(self, index: int, output_gradients: Tensor, inputs: Tensor) -> Tensor:
        spectra = []
        for side, vectors in enumerate((output_gradients, inputs)):
            buckets = vectors.new_zeros(*vectors.shape[:2], self.dim)
            count_sketch(vectors, buckets, 4 * index + side)
            spectra.append(torch.fft.rfft(buckets))
        return torch.fft.irfft((spectra[0] * spectra[1]).sum(1), n=self.dim)


def _hadamard_transform(rows: Tensor) -> Tensor:
    """H x of each row (B, 2^m), 16 or 32 points at a time by matrix products."""
    count, size = rows.shape
    stride = 1
    while stride < size:
        points = min(32 if stride == 1 else 16, size // stride)
        if stride == 1:
            rows = rows.view(-1, points) @ _hadamard_matrix(points)
        else:
            rows = _hadamard_matrix(points) @ rows.view(-1, points, stride)
        stride *= points
    return rows.view(count, size)


def _hadamard_matrix(size: int) -> Tensor:
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


ALTERNATIVES = {
    "subsampled Hadamard": HadamardSketch,
    "count sketch, s = 1": OneNonzeroSketch,
}
