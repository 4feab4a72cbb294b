"""Seeded Johnson-Lindenstrauss sketches of per-sample LoRA gradients.

A sample's gradient g is a list of factors' gradients G_p (o_p x i_p). Its sketch is linear,

    S g = sum_p S_p vec(G_p)  in R^k,    E<S g, S h> = <g, h>,    E||S g||^2 = ||g||^2,

with random S_p (k x o_p i_p), independent between factors. For `rademacher` and `sparse` the
variance of an inner product is exactly or at most that of dense signs,

    Var<S g, S h> <= V(g, h) / k,    V = ||g||^2 ||h||^2 + <g, h>^2 - 2 sum_j g_j^2 h_j^2,

so its standard error is about ||g|| ||h|| / sqrt(k), up to sqrt(2) times that for g near h
(Johnson & Lindenstrauss 1984; Achlioptas 2003). `outer` is cheaper and can be worse: see there.

Random bits come from a counter-based integer hash of (seed, factor, coordinate), never from a
generator with a state. So equal (name, shapes, dim, seed) give the same sketch on every rank and
device, for every batch split and order of calls, and after a resume. The error of one S is shared
by all pairs of samples: take a new seed for every step, lest one unlucky S bias a whole run.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import cache, reduce
from hashlib import blake2b
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor
from torch.nn.functional import pad

from capo_ds.parts import built_in

DEFAULT_DIM = 8192
# Of a dense random matrix held at a time: 4 MiB stay in a CPU's cache; a GPU wants big kernels.
BLOCK_ENTRIES = {"cpu": 1 << 20, "cuda": 1 << 26}


class Sketch(ABC):
    """One random linear map for gradients of given shapes.

    shapes: (o, i) of each factor. dim: k. seed: any integer.
    for_many: making the map costs as much as applying it to several samples.
    """

    for_many = False

    def __init__(self, shapes: list[tuple[int, int]], dim: int = DEFAULT_DIM, seed: int = 0):
        if dim < 1:
            raise ValueError(f"a sketch needs dim >= 1, got {dim}")
        self.shapes, self.dim, self.seed = [tuple(shape) for shape in shapes], dim, seed

    @abstractmethod
    def project(self, index: int, gradients: Tensor) -> Tensor:
        """S_p vec(G_p) of B samples, p = index. gradients: (B, o, i) -> (B, dim), float32."""

    @torch.no_grad()
    def project_outer(self, index: int, output_gradients: Tensor, inputs: Tensor) -> Tensor:
        """The same for G_p = sum_t dy_t x_t'. (B, T, o), (B, T, i) -> (B, dim), float32."""
        products = torch.bmm(output_gradients.transpose(1, 2).float(), inputs.float())
        return self.project(index, products)

    def __call__(self, gradients: Iterable[Tensor]) -> Tensor:
        """S g of B samples. gradients: (B, o, i) per factor -> (B, dim), float32."""
        return reduce(Tensor.add_, (self.project(i, rows) for i, rows in enumerate(gradients)))

    def _check(self, index: int, *shape: int) -> None:
        if shape != self.shapes[index]:
            raise ValueError(f"factor {index} is {self.shapes[index]}, its gradient {shape}")


class RademacherSketch(Sketch):
    """Dense signs, entries +-1/sqrt(k) (Achlioptas 2003): the paper's sketch.

    Var<S g, S h> = V(g, h) / k exactly. Costs k multiply-adds per gradient entry and sample.

    The matrix is made in blocks of columns of S and never held whole. One hashed 64-bit word gives
    64 signs by shifting each bit into the sign of a float 1.0, so a block costs about as much as
    multiplying it with 5 rows (CPU): project many samples at once.
    """

    for_many = True

    @torch.no_grad()
    def project(self, index: int, gradients: Tensor) -> Tensor:
        self._check(index, *gradients.shape[1:])
        rows = gradients.flatten(1).float()
        key = _key(self.seed, index)
        sketch = rows.new_zeros(len(rows), self.dim)
        if fused := _fused(rows.device.type):
            fused.add_dense_signs(rows.contiguous(), sketch, key)
            return sketch.div_(math.sqrt(self.dim))
        step = max(1, BLOCK_ENTRIES[rows.device.type] // self.dim)
        for first in range(0, rows.shape[1], step):
            block = rows[:, first : first + step]
            sketch.addmm_(block, _signs(key, first, block.shape[1], self.dim, rows.device))
        return sketch.div_(math.sqrt(self.dim))


class SparseSketch(Sketch):
    """Sparse JL transform: s = 4 nonzeros +-1/sqrt(s) a column (Kane & Nelson 2014).

    The k outputs form s bands. Each band is a count sketch (Charikar, Chen & Farach-Colton 2002):
    coordinate j is added to one bucket h(j) with a sign. Var<S g, S h> <= V(g, h) / k. Costs s
    additions per entry instead of k.

    Why this and not a subsampled Hadamard transform (Ailon & Chazelle 2009; Tropp 2011): on CPU it
    is 3 to 5 times faster from 16 samples a call on (as fast with 8), at the same error. Why s = 4:
    the mean square error is the same for every s, but with s = 1 a single collision of two heavy
    coordinates costs all of their product; the largest errors on gradients with massive channels
    were up to 3 times those of s = 4. Measured in benchmarks/sketches.py.
    """

    NONZEROS = 4

    @torch.no_grad()
    def project(self, index: int, gradients: Tensor) -> Tensor:
        self._check(index, *gradients.shape[1:])
        rows = gradients.flatten(1).float()
        sketch = rows.new_zeros(len(rows), self.dim)
        bands = min(self.NONZEROS, self.dim)
        count_sketch(rows, sketch, *(_key(self.seed, index, band) for band in range(bands)))
        return sketch.div_(math.sqrt(bands))


class OuterSketch(Sketch):
    """Two-sided sketch R G P' that never forms G = sum_t dy_t x_t'.

    One side of a LoRA factor is its rank r; write G (r x n), transposing if o > i. P (w x n) is a
    count sketch of the long side to w = floor(k / r) buckets, R (r x r) a random orthogonal matrix,
    and S vec(G) = vec(R G P') = vec(R sum_t dy_t (P x_t)'). A token costs n additions and r w <= k
    multiply-adds, where forming G costs r n.

    Unbiased: E P'P = 1 and R'R = 1 give E tr(R G P' P H' R') = tr(G H').
    Variance, one factor, with M = G'H: P'P has unit diagonal and off the diagonal the entries
    s_j s_l [h(j) = h(l)], uncorrelated and of variance <= 1/w, so

        Var = sum_{j<l} (M_jl + M_lj)^2 Var(P'P)_jl <= (||M||_F^2 + tr M^2 - 2 sum_j M_jj^2) / w.

    ||M||_F lies between about ||G|| ||H|| / sqrt(r), when their r rows are as good as orthogonal
    (then the error is 1/sqrt(k), as of dense signs), and ||G|| ||H||, when both have rank one with
    equal short sides: then it is sqrt(r/k), **sqrt(r) times worse** (8 times at r = 64).
    If n <= w no two entries meet and the factor's own error is 0.

    Variance, factors p != q: E <S_p G_p, S_q H_q>^2 <= (3/2) ||G_p||^2 ||H_q||^2 / (r w), since the
    entries of R_p'R_q have variance <= 3/(2r). R is there for this, else equal short sides of two
    factors would again cost a factor r. With e_p the share of factor p in ||g|| ||h||, the whole is
    about (1 + (r - 1) sum_p e_p^2) / k at worst: with 100 factors of like norms and r = 64 an error
    of 1.3 / sqrt(k), with two factors 5.7 / sqrt(k).

    Why not TensorSketch (Pham & Pagh 2013), which has no such worst case: two FFTs of length k a
    token cost 10 times and more what forming G does when one side is as short as r.
    """

    def __init__(self, shapes: list[tuple[int, int]], dim: int = DEFAULT_DIM, seed: int = 0):
        super().__init__(shapes, dim, seed)
        if any(min(shape) > dim for shape in self.shapes):
            raise ValueError("the outer sketch needs dim >= the shorter side of every factor")

    @torch.no_grad()
    def project(self, index: int, gradients: Tensor) -> Tensor:
        outputs, inputs = gradients.shape[1:]
        self._check(index, outputs, inputs)
        if outputs > inputs:
            gradients = gradients.transpose(1, 2).contiguous()
        return self._rotate(index, self._sketch_long_side(index, gradients))

    @torch.no_grad()
    def project_outer(self, index: int, output_gradients: Tensor, inputs: Tensor) -> Tensor:
        self._check(index, output_gradients.shape[2], inputs.shape[2])
        short, long = output_gradients, inputs
        if short.shape[2] > long.shape[2]:
            short, long = long, short
        long = self._sketch_long_side(index, long)
        return self._rotate(index, torch.bmm(short.transpose(1, 2).float(), long))

    def _sketch_long_side(self, index: int, vectors: Tensor) -> Tensor:
        """P applied to the last dimension: (B, *, n) -> (B, *, w)."""
        width = self.dim // min(self.shapes[index])
        buckets = vectors.new_zeros(*vectors.shape[:-1], width, dtype=torch.float32)
        return count_sketch(vectors, buckets, _key(self.seed, index, 0))

    def _rotate(self, index: int, products: Tensor) -> Tensor:
        """R applied to (B, r, w), laid out as (B, dim); outputs beyond r w stay 0."""
        rank = products.shape[1]
        before, after = _signs(_key(self.seed, index, 1), 0, 2, rank, products.device)
        rotation = after[:, None] * _cosine_transform(rank, products.device) * before
        rotated = (rotation @ products).flatten(1)
        return pad(rotated, (0, self.dim - rotated.shape[1]))


def make_sketch(
    name: str, shapes: list[tuple[int, int]], dim: int = DEFAULT_DIM, seed: int = 0
) -> Sketch:
    """The sketch of that name that ships, for factors of these shapes (o, i)."""
    return built_in("sketch", name)(shapes, dim, seed)


# ---------------------------------------------------------------- count sketch


def count_sketch(rows: Tensor, buckets: Tensor, *keys: int) -> Tensor:
    """Add sum_j sign_j x_j e_h(j) to each band of the buckets, with a key for each, at most four.

    rows: (*, n), buckets: (*, w), float32.

    The hash is h(j) = (j + shift_b) mod w for coordinates of block b = floor(j / w), with a random
    shift per block, where w is the band's width. Two coordinates meet with probability 0 within a
    block and 1/w between blocks, and the variance bound asks no more; in return a block is one
    contiguous multiply-add.
    """
    if fused := _fused(rows.device.type):
        flat = rows.reshape(-1, rows.shape[-1])  # may be a view with other strides
        fused.add_count_sketch(flat.contiguous(), buckets.view(-1, buckets.shape[-1]), keys)
        return buckets
    add = _add_blocks if rows.device.type == "cpu" else _add_gathered
    length = rows.shape[-1]
    for band, key in zip(buckets.tensor_split(len(keys), dim=-1), keys, strict=True):
        width = band.shape[-1]
        blocks = -(-length // width)
        words = _words(key, 0, blocks + -(-length // 64), rows.device)
        add(rows, band, _unpacked(words[blocks:])[:length], words[:blocks] % width)
    return buckets


def _add_blocks(rows: Tensor, buckets: Tensor, signs: Tensor, shifts: Tensor) -> None:
    """Block by block, each in the two pieces that its shift cuts it into."""
    width, length = buckets.shape[-1], rows.shape[-1]
    for block, shift in enumerate(shifts.tolist()):
        first = block * width
        cut, last = min(first + width - shift, length), min(first + width, length)
        for start, stop, bucket in ((first, cut, shift), (cut, last, 0)):
            if start < stop:
                target = buckets[..., bucket : bucket + stop - start]
                target.addcmul_(rows[..., start:stop].float(), signs[start:stop])


def _add_gathered(rows: Tensor, buckets: Tensor, signs: Tensor, shifts: Tensor) -> None:
    """All blocks at once, from the source coordinate of each (block, bucket): few kernels."""
    width, length = buckets.shape[-1], rows.shape[-1]
    bucket = torch.arange(width, device=rows.device)
    block = torch.arange(len(shifts), device=rows.device)[:, None]
    source = block * width + (bucket - shifts[:, None]) % width
    inside = source < length
    source = source.where(inside, 0).flatten()
    weights = signs[source] * inside.flatten()
    gathered = rows.index_select(-1, source).float() * weights
    buckets += gathered.unflatten(-1, (len(shifts), width)).sum(-2)


@cache
def _fused(device: str) -> ModuleType | None:
    """The kernels for such a device, where Triton is (it comes with torch's builds for CUDA, and
    wants a C compiler) and the device multiplies in bfloat16."""
    if device == "cpu" or not torch.version.cuda or not find_spec("triton"):
        return None
    if torch.cuda.get_device_capability() < (8, 0):
        return None
    return import_module("capo_ds.gradients.fused")


# ---------------------------------------------------------------- random bits


def _signs(key: int, first: int, count: int, length: int, device: torch.device) -> Tensor:
    """Rows `first`, ..., `first + count - 1` of a random +-1 matrix, (count, length) of float32."""
    words = -(-length // 64)
    bits = _words(key, first * words, count * words, device)
    return _unpacked(bits.view(count, words))[:, :length]


def _unpacked(words: Tensor) -> Tensor:
    """64 signs from each word: (*, n) of int64 -> (*, 64 n) of float32."""
    bits = words.view(torch.int32).unsqueeze(-2)
    shifts = torch.arange(32, dtype=torch.int32, device=words.device)[:, None]
    signs = torch.bitwise_left_shift(bits, shifts)  # each bit in turn becomes the top one
    signs.bitwise_and_(-(1 << 31)).bitwise_or_(0x3F800000)  # that sign, and the bits of 1.0
    return signs.view(torch.float32).flatten(-2)


def _words(key: int, first: int, count: int, device: torch.device) -> Tensor:
    """Outputs `first`, `first + 1`, ... of SplitMix64 with state `key`, (count,) of int64."""
    counters = torch.arange(first + 1, first + 1 + count, device=device)
    return _mix(counters.mul_(_signed(0x9E3779B97F4A7C15)).add_(key))


def _key(*path: int) -> int:
    """An int64 that stands for a path such as (seed, factor, band)."""
    digest = blake2b(repr(path).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser (Steele, Lea & Flood 2014; constants of Stafford's mix 13).

    Products wrap modulo 2^64; masks turn arithmetic shifts into logical ones.
    """
    for shift, multiplier in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> shift & (1 << 64 - shift) - 1)) * _signed(multiplier)
    return x ^ (x >> 31 & (1 << 33) - 1)


def _signed(word: int) -> int:
    """The int64 of the same bits as a 64-bit word."""
    return word - (1 << 64) if word >> 63 else word


# ---------------------------------------------------------------- small helpers


@cache
def _cosine_transform(size: int, device: torch.device) -> Tensor:
    """The orthogonal DCT-II matrix (size, size), float32: it spreads every unit vector out."""
    index = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(torch.outer(index, index + 0.5) * math.pi / size) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix.to(device, torch.float32)
