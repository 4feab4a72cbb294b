"""Stores that keep their rows in the memory of the one before."""

import torch

from capo_ds.gradients.space import Space
from capo_ds.learning.collect import Stores

SHAPES = [(2, 3), (4, 2)]


def test_memory_is_kept_and_only_grows():
    space = Space(torch.device("cpu"), torch.float32)
    first = space.rows(5, SHAPES)
    assert [rows.shape for rows in first] == [(5, 2, 3), (5, 4, 2)]
    for number, rows in enumerate(first):
        rows.fill_(number)
    assert [float(rows.sum()) for rows in first] == [0, 40]  # they do not overlap
    fewer = space.rows(3, SHAPES)
    assert fewer[0].data_ptr() == first[0].data_ptr()
    more = space.rows(6, SHAPES)
    assert space.rows(6, SHAPES)[1].data_ptr() == more[1].data_ptr()


def test_a_store_after_another_holds_its_own_gradients(process_group):
    generator = torch.Generator().manual_seed(0)
    for kind in ("device", "host"):
        stores = Stores(kind, torch.float32, SHAPES)
        for samples in (4, 2, 5):
            store = stores.new(samples, None, lambda _: [])
            expected = []
            for index, (outputs, inputs) in enumerate(SHAPES):
                dy = torch.randn(samples, 7, outputs, generator=generator)
                x = torch.randn(samples, 7, inputs, generator=generator)
                store.write(index, 0, dy, x)
                expected.append(torch.einsum("bto,bti->boi", dy, x).flatten(1))
            for found, rows in zip(store.matrices(), expected, strict=True):
                torch.testing.assert_close(found, rows)
