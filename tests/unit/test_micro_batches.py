"""Which rows share a pass, by number and by tokens."""

import pytest

from capo_ds.config.training import TrainConfig
from capo_ds.learning.micro_batches import micro_batches

WIDTHS = [3, 3, 4, 5, 9, 9, 20]


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        ({"micro_batch_size": 3}, [3, 3, 1]),
        ({"micro_batch_size": 100}, [7]),
        ({"micro_batch_size": 1}, [1] * 7),
        ({"micro_batch_size": 1, "micro_batch_tokens": 16}, [3, 1, 1, 1, 1]),
        ({"micro_batch_tokens": 18}, [3, 2, 1, 1]),
        ({"micro_batch_tokens": 1}, [1] * 7),
        ({"micro_batch_tokens": 140}, [7]),
    ],
)
def test_rows_are_shared_out_in_order(settings, sizes):
    parts = micro_batches(WIDTHS, TrainConfig(**settings))
    assert [len(part) for part in parts] == sizes
    assert [row for part in parts for row in part] == list(range(7))


def test_a_wide_row_counts_wherever_it_stands():
    parts = micro_batches([9, 1, 1, 1], TrainConfig(micro_batch_tokens=18))
    assert [len(part) for part in parts] == [2, 2]


def test_nothing_is_no_pass():
    assert micro_batches([], TrainConfig()) == []
