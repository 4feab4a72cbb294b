"""Which rows share a pass, by number and by tokens."""

from itertools import combinations, pairwise

import numpy as np
import pytest

from capo_ds.config.training import TrainConfig
from capo_ds.learning.micro_batches import PASS, micro_batches

WIDTHS = [3, 3, 4, 5, 9, 9, 20]


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        ({"micro_batch_size": 3}, [3, 3, 1]),
        ({"micro_batch_size": 100}, [7]),
        ({"micro_batch_size": 1}, [1] * 7),
        ({"micro_batch_size": 1, "micro_batch_tokens": 16}, [2, 1, 1, 1, 1, 1]),
        ({"micro_batch_tokens": 18}, [2, 1, 1, 2, 1]),
        ({"micro_batch_tokens": 1}, [1] * 7),
        ({"micro_batch_tokens": 140}, [4, 2, 1]),
        ({"micro_batch_tokens": 10_000}, [7]),
    ],
)
def test_rows_are_shared_out_in_order(settings, sizes):
    parts = micro_batches(WIDTHS, TrainConfig(**settings))
    assert [len(part) for part in parts] == sizes
    assert [row for part in parts for row in part] == list(range(7))


@pytest.mark.parametrize("room", [1, 12, 30, 64, 1000])
@pytest.mark.parametrize("ordered", [True, False])
def test_no_cuts_cost_less(room, ordered):
    random = np.random.default_rng(room)
    widths = random.integers(1, 15, 9).tolist()
    widths = sorted(widths) if ordered else widths

    def cost(parts: list[range]) -> float:
        """In positions; infinite where a pass has no room for its rows."""
        sizes = [len(part) * max(widths[row] for row in part) for part in parts]
        fits = all(size <= room or len(part) == 1 for size, part in zip(sizes, parts, strict=True))
        return sum(sizes) + PASS * room * len(parts) if fits else np.inf

    ways = [
        [range(*ends) for ends in pairwise((0, *cuts, 9))]
        for count in range(9)
        for cuts in combinations(range(1, 9), count)
    ]
    found = micro_batches(widths, TrainConfig(micro_batch_tokens=room))
    assert [row for part in found for row in part] == list(range(9))
    assert cost(found) == pytest.approx(min(map(cost, ways)))


def test_nothing_is_no_pass():
    assert micro_batches([], TrainConfig()) == []
    assert micro_batches([], TrainConfig(micro_batch_tokens=16)) == []
