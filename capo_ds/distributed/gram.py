"""The Gram matrix of all ranks' samples, from column blocks exchanged by all-to-all."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import repeat

import numpy as np
import torch
from torch import Tensor

from capo_ds.distributed import comm

BUFFER_ENTRIES = 1 << 24  # of all samples' columns that a rank holds at a time: 64 MiB in float32
BAND_ROWS = 256  # of a Gram matrix that are reduced at a time


def gram_matrix(matrices: Iterable[Tensor], samples_per_rank: list[int]) -> np.ndarray | None:
    """Exact Gram matrix G G' (N, N) in float64, on rank 0; None on the others. See
    `gram_matrices`."""
    grams = gram_matrices(matrices, samples_per_rank, repeat(0))
    return None if grams is None else grams[0]


def gram_matrices(
    matrices: Iterable[Tensor], samples_per_rank: list[int], blocks: Iterable[int], count: int = 1
) -> np.ndarray | None:
    """Exact Gram matrices (count, N, N) in float64, on rank 0; None on the others.

    matrices: this rank's rows (n, columns) of G, one block of columns at a time; the blocks are
    the same on all ranks, n may differ and be 0. Samples are in rank order. Each rank forms the
    product of its share of the columns, so that the arithmetic and the buffers are shared out.
    Columns travel in the matrices' dtype; products are in float32 (or wider), their sum over
    blocks and ranks in float64.

    blocks: of each matrix, the number of the Gram matrix that it is a part of.
    """
    total = sum(samples_per_rank)
    grams = torch.zeros(count, total, total, dtype=torch.float64, device=comm.device())
    width = max(comm.world_size(), BUFFER_ENTRIES // max(1, total) * comm.world_size())
    for matrix, number in zip(matrices, blocks, strict=False):  # blocks may go on for ever
        for block in matrix.split(width, dim=1):
            grams[number] += product_with_itself(_exchange_columns(block, samples_per_rank))
    for gram in grams:
        _symmetric_sum(gram)
    return grams.cpu().numpy() if comm.is_main() else None


def product_with_itself(rows: Tensor) -> Tensor:
    """rows @ rows', in float32 or wider. On a CPU by NumPy, which sees the symmetry and does half
    of the product (BLAS syrk); torch has no such routine."""
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    if rows.device.type != "cpu":
        return rows @ rows.T
    array = rows.numpy()
    return torch.from_numpy(array @ array.T)


def _symmetric_sum(gram: Tensor) -> None:
    """The sum over ranks of symmetric matrices, in place, on rank 0.

    Only a triangle of each is sent, some rows at a time: indices of all of it would take as much
    memory again as the matrix.
    """
    count = len(gram)
    for first in range(0, max(count, 1), BAND_ROWS):
        band = gram[first : first + BAND_ROWS, first:]
        upper = torch.ones_like(band, dtype=torch.bool).triu()
        sums = band[upper]
        comm.reduce_to_main(sums)
        if comm.is_main():
            band[upper] = sums
            corner = band[:, : len(band)]
            corner.copy_(corner.triu() + corner.triu(1).T)
            gram[first + len(band) :, first : first + len(band)] = band[:, len(band) :].T


def norms_of_sums(*vectors: list[Tensor]) -> list[float]:
    """||sum over ranks of v|| for each vector v, given as this rank's part, block by block.

    Every rank sums its share of the columns, as a reduce-scatter does.
    """
    squares = torch.zeros(len(vectors), dtype=torch.float64, device=comm.device())
    for blocks in zip(*vectors, strict=True):
        parts = torch.stack([block.flatten() for block in blocks])
        columns = _exchange_columns(parts, [len(vectors)] * comm.world_size())
        sums = columns.view(comm.world_size(), len(vectors), -1).double().sum(0)
        squares += sums.square().sum(1)
    return [math.sqrt(square) for square in comm.sum_over_ranks(*squares.tolist())]


def _exchange_columns(matrix: Tensor, samples_per_rank: list[int]) -> Tensor:
    """From (n, D), some samples and all columns, to (N, D / ranks), all samples, some columns."""
    if comm.world_size() == 1:
        return matrix
    parts = matrix.tensor_split(comm.world_size(), dim=1)
    mine = parts[comm.rank()].shape[1]
    received = comm.all_to_all(list(parts), [samples * mine for samples in samples_per_rank])
    return received.view(sum(samples_per_rank), mine)
