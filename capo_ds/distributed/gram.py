"""The Gram matrix of all ranks' samples, from column blocks exchanged by all-to-all."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from capo_ds.distributed import comm


def gram_matrix(matrices: list[Tensor], samples_per_rank: list[int]) -> np.ndarray | None:
    """Exact Gram matrix G G' (N, N) in float64, on rank 0; None on the others.

    matrices: this rank's rows (n, columns) of G, one block of columns at a time; the blocks are
    the same on all ranks, n may differ and be 0. Samples are in rank order. Each rank forms the
    product of its share of the columns, so that the arithmetic and the buffers are shared out;
    products are in the matrices' dtype, their sum over blocks and ranks in float64.
    """
    total = sum(samples_per_rank)
    gram = torch.zeros(total, total, dtype=torch.float64, device=comm.device())
    for matrix in matrices:
        columns = _exchange_columns(matrix, samples_per_rank)  # (N, columns / ranks)
        gram += columns @ columns.T
    dist.reduce(gram, dst=0)
    return gram.cpu().numpy() if comm.is_main() else None


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


def bytes_sent(matrices: list[Tensor], samples_per_rank: list[int]) -> int:
    """Bytes that one rank sends in `gram_matrix`: its columns to the others, and the partial."""
    ranks = comm.world_size()
    if ranks == 1:
        return 0
    rows = sum(matrix.numel() * matrix.element_size() for matrix in matrices)
    return rows * (ranks - 1) // ranks + 8 * sum(samples_per_rank) ** 2


def _exchange_columns(matrix: Tensor, samples_per_rank: list[int]) -> Tensor:
    """From (n, D), some samples and all columns, to (N, D / ranks), all samples, some columns."""
    if comm.world_size() == 1:
        return matrix
    parts = matrix.tensor_split(comm.world_size(), dim=1)
    mine = parts[comm.rank()].shape[1]
    sent = torch.cat([part.flatten() for part in parts])
    received = matrix.new_empty(sum(samples_per_rank) * mine)
    dist.all_to_all_single(
        received,
        sent,
        output_split_sizes=[samples * mine for samples in samples_per_rank],
        input_split_sizes=[part.numel() for part in parts],
    )
    return received.view(sum(samples_per_rank), mine)
