"""The Gram matrix of all ranks' samples, from column blocks exchanged by all-to-all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from capo_ds.distributed import comm

# Of all samples' columns that a rank holds at a time, about: 64 MiB in float32.
BUFFER_ENTRIES = 1 << 24
# Up to which blocks travel together: more fresh memory costs more than it saves.
JOINED_ENTRIES = 1 << 22
SUMMED = 1 << 14  # columns whose products are summed in float32 before they are in float64
BAND_ROWS = 256  # of a Gram matrix that are reduced at a time
Piece = TypeVar("Piece")


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
    Columns travel in the matrices' dtype, those of many matrices together; products are in float32
    (or wider), their sum over blocks of columns and ranks in float64.

    blocks: of each matrix, the number of the Gram matrix that it is a part of.
    """
    total = sum(samples_per_rank)
    grams = torch.zeros(count, total, total, dtype=torch.float64, device=comm.device())
    exchange = _Exchange(samples_per_rank)
    for number, rows in exchange.all(matrices, blocks):
        for part in rows.split(SUMMED, dim=1):
            exchange.add_in_order(grams[number], product_with_itself(part))
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
    matrices = (torch.stack([b.flatten() for b in blocks]) for blocks in zip(*vectors, strict=True))
    exchange = _Exchange([len(vectors)] * comm.world_size())
    for _, parts in exchange.all(matrices, repeat(0)):
        sums = parts.view(comm.world_size(), len(vectors), -1).double().sum(0)
        squares += sums.square().sum(1)
    return [math.sqrt(square) for square in comm.sum_over_ranks(*squares.tolist())]


class _Exchange:
    """From (n, D), some samples and all columns, to (N, D / ranks), all samples, some columns:
    this rank's first, then the others' in rank order.

    Blocks of columns travel together, as many as there is room for: an exchange of little costs as
    much as its messages. One exchange after another goes through the same memory: fresh memory
    costs a CPU as much as what is written to it. What stays on the rank is copied once, and not by
    the collective.
    """

    def __init__(self, samples_per_rank: list[int]):
        self._counts, self._total = samples_per_rank, sum(samples_per_rank)
        self._sent = self._whole = torch.empty(0)
        rank = comm.rank()
        before, mine = sum(samples_per_rank[:rank]), samples_per_rank[rank]
        after = slice(before + mine, self._total)
        # Where samples are among all, and where among the exchanged rows.
        self._places = [(slice(0, before + mine), slice(0, before + mine)), (after, after)]
        if before:
            own, earlier = slice(before, before + mine), slice(0, before)
            self._places[:1] = [(own, slice(0, mine)), (earlier, slice(mine, before + mine))]

    def all(
        self, matrices: Iterable[Tensor], numbers: Iterable[int]
    ) -> Iterator[tuple[int, Tensor]]:
        """Each exchange's rows, good until the next, with the number of the matrices in it."""
        if comm.world_size() == 1:
            yield from zip(numbers, matrices, strict=False)
            return
        most, joined = _columns_at_a_time(self._total, comm.world_size())
        pieces = (
            (number, block.shape[1], block)
            for number, matrix in zip(numbers, matrices, strict=False)
            for block in matrix.split(most, dim=1)
        )
        for number, blocks in _together(pieces, joined):
            yield number, self._exchanged(blocks)

    def _exchanged(self, blocks: list[Tensor]) -> Tensor:
        ranks, rank, samples = comm.world_size(), comm.rank(), len(blocks[0])
        by_rank = list(zip(*(block.tensor_split(ranks, dim=1) for block in blocks), strict=True))
        widths = [sum(part.shape[1] for part in parts) for parts in by_rank]
        sizes = [0 if other == rank else samples * width for other, width in enumerate(widths)]
        self._sent = _at_least(self._sent, blocks[0], sum(sizes))
        sent = self._sent[: sum(sizes)]
        for other, room in enumerate(sent.split(sizes)):
            if other != rank:
                _put_beside(by_rank[other], room.view(samples, widths[other]))
        width = widths[rank]
        self._whole = _at_least(self._whole, blocks[0], self._total * width)
        whole = self._whole[: self._total * width].view(self._total, width)
        _put_beside(by_rank[rank], whole[:samples])
        counts = [0 if other == rank else count * width for other, count in enumerate(self._counts)]
        comm.all_to_all(sent, sizes, whole[samples:], counts)
        return whole

    def add_in_order(self, gram: Tensor, product: Tensor) -> None:
        """gram += product, whose rows and columns are in the order of exchanged rows."""
        for rows, from_rows in self._places:
            for columns, from_columns in self._places:
                gram[rows, columns] += product[from_rows, from_columns]


def exchange_count(widths: Sequence[int], numbers: Iterable[int], samples: int, ranks: int) -> int:
    """How many exchanges the columns of matrices take: so wide, of Gram matrices so numbered, of
    all ranks' samples."""
    most, joined = _columns_at_a_time(samples, ranks)
    pieces = (
        (number, min(most, width - first), None)
        for number, width in zip(numbers, widths, strict=False)
        for first in range(0, width, most)
    )
    return sum(1 for _ in _together(pieces, joined))


def _columns_at_a_time(samples: int, ranks: int) -> tuple[int, int]:
    """Where a wide matrix is cut, and up to where narrow ones travel together; a rank holds its
    share of the columns."""
    most, joined = (
        max(1, entries // max(1, samples)) * ranks for entries in (BUFFER_ENTRIES, JOINED_ENTRIES)
    )
    return most, min(most, joined)


def _together(
    pieces: Iterable[tuple[int, int, Piece]], joined: int
) -> Iterator[tuple[int, list[Piece]]]:
    """Neighbours of one number as long as they have no more than `joined` columns.

    pieces: of each its number, its columns, and itself.
    """
    waiting: list[Piece] = []
    last = columns = 0
    for number, width, piece in pieces:
        columns += width
        if waiting and (number != last or columns > joined):
            yield last, waiting
            waiting, columns = [], width
        waiting, last = [*waiting, piece], number
    if waiting:
        yield last, waiting


def _put_beside(parts: Sequence[Tensor], room: Tensor) -> None:
    """The parts' columns (n, d_1), (n, d_2), ... into (n, D)."""
    for part, columns in zip(parts, room.split([p.shape[1] for p in parts], dim=1), strict=True):
        columns.copy_(part)


def _at_least(memory: Tensor, like: Tensor, count: int) -> Tensor:
    if memory.numel() < count or memory.dtype != like.dtype:
        return like.new_empty(count)
    return memory
