"""Sketches: moments against theory, and that a sketch depends on its name, shapes, dim and seed."""

import math
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from capo_ds.gradients import sketch as module
from capo_ds.gradients.sketch import Sketch, make_sketch
from capo_ds.parts import names
from tests.conftest import clean_environment

SHAPES = [(5, 37), (41, 3), (8, 70)]
DIM = 150  # no power of two, no multiple of a side, below the number of parameters
NAMES = names("sketch")
every_sketch = pytest.mark.parametrize("name", NAMES)


def random_gradients(samples: int, shapes=SHAPES, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(samples, *shape, generator=generator) for shape in shapes]


def flat(gradients: list[Tensor]) -> Tensor:
    return torch.cat([rows.flatten(1) for rows in gradients], dim=1)


def matrix(sketch: Sketch, index: int) -> Tensor:
    """S_p as it stands: (dim, o * i)."""
    shape = sketch.shapes[index]
    return sketch.project(index, torch.eye(math.prod(shape)).view(-1, *shape)).T


def inner_products(name: str, gradients: list[Tensor], dim: int, seeds: int) -> Tensor:
    """(seeds, N, N) sketched Gram matrices."""
    shapes = [tuple(rows.shape[1:]) for rows in gradients]
    sketches = torch.stack([make_sketch(name, shapes, dim, s)(gradients) for s in range(seeds)])
    return sketches @ sketches.transpose(1, 2)


def dense_variance(gradients: list[Tensor]) -> Tensor:
    """(N, N) V = ||g||^2 ||h||^2 + <g, h>^2 - 2 sum_j g_j^2 h_j^2."""
    rows = flat(gradients)
    squares = rows**2
    norms = squares.sum(1)
    return norms[:, None] * norms + (rows @ rows.T) ** 2 - 2 * squares @ squares.T


# ---------------------------------------------------------------- moments


@every_sketch
def test_inner_products_and_norms_are_unbiased(name):
    """Over 400 seeds, the mean is within 4 standard errors of the truth for each of 21 pairs."""
    gradients = random_gradients(6)
    grams = inner_products(name, gradients, DIM, seeds=400)
    exact = flat(gradients) @ flat(gradients).T
    assert ((grams.mean(0) - exact).abs() <= 4 * grams.std(0) / math.sqrt(400)).all()


@every_sketch
@pytest.mark.parametrize("dim", [75, 300, 1200])
def test_error_falls_as_one_over_root_dim(name, dim):
    """On generic gradients: mean square error over 60 seeds within 20% of V / k."""
    gradients = random_gradients(12, shapes=[(8, 100)] * 6)
    error = inner_products(name, gradients, dim, seeds=60) - flat(gradients) @ flat(gradients).T
    ratio = error.pow(2).mean() / (dense_variance(gradients).mean() / dim)
    assert 0.8 <= ratio <= 1.2


@pytest.mark.parametrize("name", ["rademacher", "sparse"])
def test_variance_holds_for_gradients_of_rank_one(name):
    gradients = _common_short_side(samples=8, rank=8, length=64)
    error = inner_products(name, gradients, DIM, 150) - flat(gradients) @ flat(gradients).T
    assert error.pow(2).mean() <= 1.2 * dense_variance(gradients).mean() / DIM


def test_outer_sketch_has_the_variance_that_it_admits_to():
    """One factor, rank one, equal short sides: about r times dense signs', as its formula says."""
    rank, gradients = 8, _common_short_side(samples=8, rank=8, length=640)
    (rows,) = gradients
    width = DIM // rank
    products = torch.einsum("aoj,bol->abjl", rows, rows)  # M = G'H of each pair
    swapped = (products * products.transpose(2, 3)).sum((2, 3))
    diagonal = products.diagonal(dim1=2, dim2=3).pow(2).sum(2)
    predicted = (products.pow(2).sum((2, 3)) + swapped - 2 * diagonal) / width
    error = inner_products("outer", gradients, DIM, 150) - flat(gradients) @ flat(gradients).T
    assert 0.8 <= error.pow(2).mean() / predicted.mean() <= 1.1
    assert predicted.mean() / (dense_variance(gradients).mean() / DIM) > rank / 1.5


def test_outer_sketch_keeps_factors_apart():
    """Two factors with the same short side: their cross term is no larger than 1.5 / k."""
    first, second = _common_short_side(8, 8, 64, seed=1)[0], _common_short_side(8, 8, 64, seed=2)[0]
    shapes, errors = [(8, 64)] * 2, []
    for seed in range(150):
        sketch = make_sketch("outer", shapes, DIM, seed)
        errors.append(sketch.project(0, first) @ sketch.project(1, second).T)
    norms = first.flatten(1).norm(dim=1)[:, None] * second.flatten(1).norm(dim=1)
    assert torch.stack(errors).div(norms).pow(2).mean() <= 1.5 / DIM


def _common_short_side(samples: int, rank: int, length: int, seed: int = 0) -> list[Tensor]:
    """One factor's gradients u x', with the same u for all samples."""
    generator = torch.Generator().manual_seed(seed)
    long = torch.randn(samples, 1, length, generator=generator)
    return [torch.linspace(1, 2, rank)[:, None] * long]


@every_sketch
def test_factors_are_independent(name):
    """Equal gradients in two factors: S_p and S_q differ, and sketches of them are uncorrelated."""
    shapes = [(6, 50), (6, 50)]
    (gradient,) = random_gradients(1, shapes[:1])
    products = []
    for seed in range(300):
        sketch = make_sketch(name, shapes, DIM, seed)
        products.append((sketch.project(0, gradient) * sketch.project(1, gradient)).sum())
    products = torch.stack(products) / gradient.pow(2).sum()
    assert products.mean().abs() <= 4 * products.std() / math.sqrt(300)
    assert products.std() > 0.5 / math.sqrt(DIM)


def test_rademacher_matrix_is_of_signs():
    entries = matrix(make_sketch("rademacher", SHAPES, DIM, 3), 2) * math.sqrt(DIM)
    assert torch.allclose(entries.abs(), torch.ones(()))
    assert entries.mean().abs() < 4 / math.sqrt(entries.numel())
    correlation = entries @ entries.T / entries.shape[1] - torch.eye(DIM)
    assert correlation.abs().max() < 6 / math.sqrt(entries.shape[1])


def test_sparse_matrix_has_four_nonzeros_a_column():
    columns = matrix(make_sketch("sparse", SHAPES, DIM, 3), 0).T
    assert ((columns != 0).sum(1) == 4).all()
    assert torch.allclose(columns[columns != 0].abs(), torch.tensor(0.5))


def test_hash_meets_as_often_as_a_random_one():
    """Two coordinates of different blocks share a bucket with probability 1/w, of one block 0."""
    width, seeds, one = 10, 3000, torch.eye(25)[[0, 3, 17]]
    meetings = torch.zeros(3, 3)
    for seed in range(seeds):
        buckets = module.count_sketch(one, torch.zeros(3, width), module._key(seed)).abs()
        meetings += buckets @ buckets.T
    rates = meetings / seeds
    assert rates[0, 1] == 0
    assert abs(rates[0, 2] - 1 / width) < 4 * math.sqrt(0.09 / seeds)
    assert abs(rates[1, 2] - 1 / width) < 4 * math.sqrt(0.09 / seeds)


# ---------------------------------------------------------------- reproducibility


@every_sketch
def test_linear(name):
    first, second = random_gradients(4, seed=1), random_gradients(4, seed=2)
    sketch = make_sketch(name, SHAPES, DIM, 5)
    mixed = [2 * a - 3 * b for a, b in zip(first, second, strict=True)]
    torch.testing.assert_close(
        sketch(mixed), 2 * sketch(first) - 3 * sketch(second), rtol=1e-4, atol=1e-4
    )


@every_sketch
def test_same_for_every_batch_split_and_order(name):
    gradients = random_gradients(7)
    whole = make_sketch(name, SHAPES, DIM, 11)
    expected = [whole.project(index, rows) for index, rows in enumerate(gradients)]
    other = make_sketch(name, SHAPES, DIM, 11)
    for index in (2, 0, 1):
        parts = [other.project(index, rows) for rows in gradients[index].split([3, 0, 1, 3])]
        # A matrix product may block its sums by the number of rows; a count sketch does not.
        tolerance = {"rtol": 0, "atol": 0} if name == "sparse" else {"rtol": 1e-5, "atol": 1e-5}
        torch.testing.assert_close(torch.cat(parts), expected[index], **tolerance)
    torch.testing.assert_close(whole(gradients), sum(expected))


@every_sketch
def test_seed_decides(name):
    gradients = random_gradients(3)
    first = make_sketch(name, SHAPES, DIM, 1)(gradients)
    torch.manual_seed(99)  # the global generator plays no part
    assert torch.equal(make_sketch(name, SHAPES, DIM, 1)(gradients), first)
    assert not torch.allclose(make_sketch(name, SHAPES, DIM, 2)(gradients), first)


def test_random_bits_are_splitmix64():
    """Published outputs of SplitMix64 for state 1234567, so that no refactoring changes a run."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    for first in range(3):
        words = module._words(1234567, first, 3 - first, torch.device("cpu"))
        assert [word % (1 << 64) for word in words.tolist()] == published[first:]


def test_rademacher_block_size_changes_nothing(monkeypatch):
    gradients = random_gradients(3)
    expected = make_sketch("rademacher", SHAPES, DIM, 1)(gradients)
    monkeypatch.setitem(module.BLOCK_ENTRIES, "cpu", 7 * DIM)
    torch.testing.assert_close(make_sketch("rademacher", SHAPES, DIM, 1)(gradients), expected)


@pytest.mark.parametrize(("length", "width"), [(37, 10), (10, 10), (7, 10), (40, 1), (64, 9)])
def test_accelerators_count_sketch_equals_the_cpus(length, width):
    rows = torch.randn(2, 3, length, dtype=torch.float64).float()
    signs = torch.randn(length).sign()
    shifts = torch.randint(width, (-(-length // width),))
    one, other = torch.zeros(2, 3, width), torch.zeros(2, 3, width)
    module._add_blocks(rows, one, signs, shifts)
    module._add_gathered(rows, other, signs, shifts)
    torch.testing.assert_close(one, other)


@pytest.mark.gpu
@every_sketch
@pytest.mark.parametrize(("samples", "dim"), [(3, DIM), (130, 41), (20, 1000)])
def test_same_on_gpu(name, samples, dim):
    gradients = random_gradients(samples)
    on_gpu = make_sketch(name, SHAPES, dim, 1)([rows.cuda() for rows in gradients])
    expected = make_sketch(name, SHAPES, dim, 1)(gradients)
    torch.testing.assert_close(on_gpu.cpu(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not find_spec("triton"), reason="Triton is not installed")
def test_count_sketch_of_the_kernel():
    """On the CPU, by Triton's interpreter: the same bits. (It cannot multiply in bfloat16.)"""
    code = """
import torch
from capo_ds.gradients import fused, sketch
for samples, length, dim in ((3, 100, 64), (5, 1000, 41), (20, 700, 130), (3, 50, 7)):
    rows = torch.randn(samples, length)
    for bands in (1, 2, 4):
        keys = [sketch._key(bands, band) for band in range(bands)]
        found, expected = torch.zeros(2, samples, dim)
        fused.add_count_sketch(rows, found, keys)
        assert torch.equal(found, sketch.count_sketch(rows, expected, *keys))
sketch._fused = lambda device: fused
across = torch.randn(1, 70, 9).transpose(1, 2)  # one sample, whose reshaped rows are no rows
found = sketch.count_sketch(across, torch.zeros(1, 9, 16), 5)
sketch._fused = lambda device: None
assert torch.equal(found, sketch.count_sketch(across, torch.zeros(1, 9, 16), 5))
"""
    environment = clean_environment() | {"TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


# ---------------------------------------------------------------- interface


@every_sketch
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_outer_products_equal_the_formed_gradient(name, dtype, index):
    outputs, inputs = SHAPES[index]
    generator = torch.Generator().manual_seed(0)
    output_gradients = torch.randn(4, 9, outputs, generator=generator).to(dtype)
    tokens = torch.randn(4, 9, inputs, generator=generator).to(dtype)
    formed = torch.einsum("bto,bti->boi", output_gradients.float(), tokens.float())
    sketch = make_sketch(name, SHAPES, DIM, 2)
    result = sketch.project_outer(index, output_gradients, tokens)
    assert result.dtype == torch.float32 and result.shape == (4, DIM)
    torch.testing.assert_close(result, sketch.project(index, formed), rtol=1e-4, atol=1e-4)


@every_sketch
def test_bfloat16_is_sketched_in_float32(name):
    gradients = [rows.bfloat16() for rows in random_gradients(3)]
    sketch = make_sketch(name, SHAPES, DIM, 2)
    expected = sketch([rows.float() for rows in gradients])
    torch.testing.assert_close(sketch(gradients), expected)


@every_sketch
@pytest.mark.parametrize("dim", [7, 41, 64, 1000])
def test_odd_shapes_and_dims(name, dim):
    shapes = [(1, 1), (7, 13), (130, 5), (1, 300)]
    gradients = random_gradients(2, shapes)
    assert make_sketch(name, shapes, dim, 0)(gradients).shape == (2, dim)


@every_sketch
def test_bad_gradient_spoils_only_its_own_sketch(name):
    gradients = random_gradients(3)
    gradients[1][1, 0, 0] = math.nan
    finite = make_sketch(name, SHAPES, DIM, 0)(gradients).isfinite()
    assert finite[0].all() and finite[2].all() and not finite[1].all()


@every_sketch
def test_no_samples(name):
    assert make_sketch(name, SHAPES, DIM, 0)(random_gradients(0)).shape == (0, DIM)


@every_sketch
def test_gradient_without_collisions_keeps_its_norm(name):
    """A factor with room to spare loses nothing in a count sketch; dense signs have an error."""
    (gradient,) = random_gradients(1, [(4, 100)])
    norm = make_sketch(name, [(4, 100)], 4 * 400, 0).project(0, gradient).norm()
    torch.testing.assert_close(
        norm, gradient.norm(), rtol=0.1 if name == "rademacher" else 1e-5, atol=0
    )


class LargestTensor(TorchDispatchMode):
    """Bytes of the largest storage that any operation returns."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.bytes = max(self.bytes, result.untyped_storage().nbytes())
        return result


@every_sketch
def test_memory_is_bounded(name):
    """131072 parameters to 16384 dimensions: 8.6 GB if the matrix were stored."""
    sketch = make_sketch(name, [(8, 16384)], 16384, 0)
    gradients = torch.zeros(2, 8, 16384)
    with LargestTensor() as largest:
        sketch.project(0, gradients)
    assert largest.bytes <= max(4 * module.BLOCK_ENTRIES["cpu"], 4 * gradients.numel())


def test_outer_sketch_never_forms_the_gradient():
    sketch = make_sketch("outer", [(64, 2048)], 8192, 0)
    with LargestTensor() as largest:
        sketch.project_outer(0, torch.zeros(2, 3, 64), torch.zeros(2, 3, 2048))
    assert (
        largest.bytes <= 4 * 2 * 8192
    )  # the sketch itself; the gradients would take 16 times that


def test_wrong_use_is_told():
    with pytest.raises(ValueError, match="dim >= 1"):
        make_sketch("sparse", SHAPES, 0, 0)
    with pytest.raises(ValueError, match="rademacher, sparse, outer"):
        make_sketch("hadamard", SHAPES, DIM, 0)
    with pytest.raises(ValueError, match="shorter side"):
        make_sketch("outer", [(64, 64)], 63, 0)
    for name in NAMES:
        with pytest.raises(ValueError, match="factor 1 is"):
            make_sketch(name, SHAPES, DIM, 0).project(1, torch.zeros(2, 5, 37))
