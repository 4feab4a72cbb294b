"""Sketches on a GPU, each in one kernel (Triton) that makes its random bits where it uses them.

They compute what `sketch.py` computes, from the same bits. In steps of their own the dense signs
are written to the device's memory and read again for every product, and the count sketch's
coordinates are gathered one by one; here neither touches memory (docs/performance.md has the
ratios). Triton comes with torch's CUDA builds and is imported by those alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

ROWS, COORDINATES = 128, 32  # of a tile of dense signs' product: samples at most, and entries
HALVES, SHIFTS = 8, 16  # its columns: so many halves of words, and bits of each
WARPS = 8  # with 4, its sums would not fit the registers
COUNT_ROWS, BUCKETS = 16, 256  # of a tile of a count sketch
PARTS = 8  # that the coordinates of a product are cut into: a factor alone does not fill a GPU


def add_dense_signs(rows: Tensor, sketch: Tensor, key: int) -> None:
    """sketch += rows @ signs. rows: (N, n), sketch: (N, k), both float32 and contiguous.

    The signs are exact in bfloat16; of the rows' entries, three terms are multiplied (their 24
    bits), so products are as exact as float32's, on the tensor cores. Sums of parts are added in
    their order: every run gives the same bits.
    """
    samples, length, dim = *rows.shape, sketch.shape[1]
    words = triton.cdiv(dim, 64)
    parts = min(PARTS, triton.cdiv(length, COORDINATES))
    partial = rows.new_empty(parts, samples, dim)
    columns = triton.cdiv(2 * words, HALVES) * (32 // SHIFTS)
    tile = min(ROWS, max(16, triton.next_power_of_2(samples)))
    grid = (triton.cdiv(samples, tile), columns, parts)
    launch: Any = _dense_signs  # untyped where Triton is not installed
    launch[grid](
        rows, partial, key, samples, length, dim, words, triton.cdiv(length, parts),
        tile, COORDINATES, HALVES, SHIFTS, num_warps=WARPS,
    )  # fmt: skip
    sketch += partial.sum(0)


def add_count_sketch(rows: Tensor, sketch: Tensor, keys: Sequence[int]) -> None:
    """Bands of the sketch += count sketches of the rows, of a key each, at most four.

    rows: (N, n); sketch: (N, k), float32, cut by `tensor_split`; entries of both side by side.
    """
    samples, length, dim, bands = *rows.shape, sketch.shape[1], len(keys)
    widest = triton.cdiv(dim, bands)
    grid = (triton.cdiv(samples, COUNT_ROWS), triton.cdiv(widest, BUCKETS), bands)
    launch: Any = _count_sketch
    launch[grid](
        rows, sketch, *keys, *[0] * (4 - bands), samples, length, dim,
        rows.stride(0), sketch.stride(0), triton.cdiv(length, 64), COUNT_ROWS, BUCKETS,
    )  # fmt: skip


@triton.jit
def _mixed(number, key):
    """Output `number` of SplitMix64 with state `key`: `_words` of sketch.py."""
    x = ((number + 1).to(tl.uint64) * 0x9E3779B97F4A7C15) + key.to(tl.uint64)
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def _half(word, half):
    """The lower or the upper 32 bits."""
    return (word >> ((half % 2) * 32).to(tl.uint64)).to(tl.uint32)


@triton.jit(do_not_specialize=["key"])
def _dense_signs(
    rows, partial, key, samples, length, dim, words, part_length,
    ROWS: tl.constexpr, COORDINATES: tl.constexpr, HALVES: tl.constexpr, SHIFTS: tl.constexpr,
):  # fmt: skip
    key = tl.cast(key, tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    tiles = 32 // SHIFTS
    half = (tl.program_id(1) // tiles) * HALVES + tl.arange(0, HALVES)
    shift = (tl.program_id(1) % tiles) * SHIFTS + tl.arange(0, SHIFTS)
    first = tl.program_id(2) * part_length
    last = tl.minimum(first + part_length, length)
    total = tl.zeros((ROWS, SHIFTS * HALVES), tl.float32)
    for start in range(first, last, COORDINATES):
        j = start + tl.arange(0, COORDINATES)
        inside = (row[:, None] < samples) & (j[None, :] < last)
        x = tl.load(rows + row[:, None].to(tl.int64) * length + j[None, :], inside, 0.0)
        word = _mixed(j[:, None].to(tl.int64) * words + half[None, :] // 2, key)
        bits = _half(word, half[None, :])
        bit = (bits[:, None, :] >> (31 - shift)[None, :, None].to(tl.uint32)) & 1
        signs = (1.0 - 2.0 * bit.to(tl.float32)).to(tl.bfloat16)
        signs = tl.reshape(signs, (COORDINATES, SHIFTS * HALVES))
        high = x.to(tl.bfloat16)
        rest = x - high.to(tl.float32)
        middle = rest.to(tl.bfloat16)
        low = (rest - middle.to(tl.float32)).to(tl.bfloat16)
        total = tl.dot(low, signs, total)
        total = tl.dot(middle, signs, total)
        total = tl.dot(high, signs, total)
    column = tl.reshape(shift[:, None] * (2 * words) + half[None, :], (SHIFTS * HALVES,))
    known = tl.reshape((shift[:, None] >= 0) & (half[None, :] < 2 * words), (SHIFTS * HALVES,))
    at = (tl.program_id(2) * samples + row[:, None].to(tl.int64)) * dim + column[None, :]
    tl.store(partial + at, total, (row[:, None] < samples) & (known & (column < dim))[None, :])


@triton.jit(do_not_specialize=["key0", "key1", "key2", "key3"])
def _count_sketch(
    rows, sketch, key0, key1, key2, key3, samples, length, dim, row_stride, sketch_stride, words,
    ROWS: tl.constexpr, BUCKETS: tl.constexpr,
):  # fmt: skip
    band, bands = tl.program_id(2), tl.num_programs(2)
    key = tl.where(band < 1, tl.cast(key0, tl.int64), tl.cast(key1, tl.int64))
    later = tl.where(band < 3, tl.cast(key2, tl.int64), tl.cast(key3, tl.int64))
    key = tl.where(band < 2, key, later)
    wider = dim % bands
    width = dim // bands + (band < wider).to(tl.int32)
    first = band * (dim // bands) + tl.minimum(band, wider)
    blocks = tl.cdiv(length, width)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    bucket = tl.program_id(1) * BUCKETS + tl.arange(0, BUCKETS)
    inside = (row[:, None] < samples) & (bucket[None, :] < width)
    at = sketch + row[:, None].to(tl.int64) * sketch_stride + (first + bucket)[None, :]
    total = tl.load(at, inside, 0.0)
    for block in range(blocks):
        # `_words` are signed there, and `%` is the mathematicians'.
        hashed = _mixed(tl.cast(block, tl.int64), key).to(tl.int64)
        shift = ((hashed % width + width) % width).to(tl.int32)
        j = block * width + (bucket - shift + width) % width
        half = j % (2 * words)
        word = _mixed((blocks + half // 2).to(tl.int64), key)
        bit = (_half(word, half) >> (31 - j // (2 * words)).to(tl.uint32)) & 1
        sign = 1.0 - 2.0 * bit.to(tl.float32)
        known = inside & (j < length)[None, :]
        x = tl.load(rows + row[:, None].to(tl.int64) * row_stride + j[None, :], known, 0.0)
        total += x.to(tl.float32) * sign[None, :]
    tl.store(at, total, inside)
