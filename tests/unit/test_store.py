"""The store that keeps sketches: whatever waits for whom, they are those of the gradients."""

import math

import pytest
import torch

from capo_ds.gradients import store
from capo_ds.gradients.sketch import make_sketch
from capo_ds.gradients.store import SketchStore
from capo_ds.parts import names

SHAPES = [(3, 7), (8, 2)]
PASSES = [4, 2, 5, 1]  # samples of each
EACH = 4 * sum(map(math.prod, SHAPES))  # bytes of a sample's gradients


def filled(sketch, held: int, monkeypatch) -> tuple[SketchStore, list[torch.Tensor]]:
    """A store with room for so many waiting samples, and the gradients written to it."""
    monkeypatch.setattr(store, "HELD_BYTES", held * EACH)
    generator = torch.Generator().manual_seed(0)
    kept = SketchStore(SHAPES, sum(PASSES), torch.device("cpu"), sketch, lambda _: [])
    gradients, first = [torch.zeros(0, *shape) for shape in SHAPES], 0
    for count in PASSES:
        for index in reversed(range(len(SHAPES))):  # as in a backward pass
            outputs, inputs = SHAPES[index]
            left = torch.randn(count, 6, outputs, generator=generator)
            right = torch.randn(count, 6, inputs, generator=generator)
            kept.write(index, first, left, right)
            made = torch.einsum("bto,bti->boi", left, right)
            gradients[index] = torch.cat([gradients[index], made])
        first += count
    return kept, gradients


@pytest.mark.parametrize("name", names("sketch"))
@pytest.mark.parametrize("held", [0, 1, 4, 6, 100])
def test_sketches_and_sum_are_those_of_the_gradients(name, held, monkeypatch):
    sketch = make_sketch(name, SHAPES, 64, 3)
    kept, gradients = filled(sketch, held, monkeypatch)
    (found,) = kept.matrices()
    torch.testing.assert_close(found, sketch(gradients), rtol=1e-4, atol=1e-4)
    for total, rows in zip(kept.combine(torch.ones(12), alike=1.0), gradients, strict=True):
        torch.testing.assert_close(total, rows.sum(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("held", "made"), [(100, 1), (6, 2), (0, 4)])
def test_dense_signs_are_made_for_many_samples_at_once(held, made, monkeypatch):
    """6 has room for the first two passes, then for the others."""
    sketch, calls = make_sketch("rademacher", SHAPES, 64, 3), []
    project = sketch.project
    sketch.project = lambda index, rows: calls.append(index) or project(index, rows)
    kept, _ = filled(sketch, held, monkeypatch)
    list(kept.matrices())
    assert len(calls) == made * len(SHAPES)


def test_samples_may_come_in_any_order(monkeypatch):
    sketch = make_sketch("rademacher", SHAPES, 64, 3)
    monkeypatch.setattr(store, "HELD_BYTES", 12 * EACH)
    kept = SketchStore(SHAPES, 12, torch.device("cpu"), sketch, lambda _: [])
    left, right = torch.randn(12, 6, 3), torch.randn(12, 6, 7)
    for rows in (range(8, 12), range(3), range(3, 8)):
        some = slice(rows.start, rows.stop)
        kept.write(0, rows.start, left[some], right[some])
    (found,) = kept.matrices()
    expected = sketch.project_outer(0, left, right)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
