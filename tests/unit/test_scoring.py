"""What is told of a step's responses, as a whole and by data set."""

import warnings

import pytest
import torch

from capo_ds.config import parse_config
from capo_ds.facts import without_prompts
from capo_ds.rollout.rollout import Rollout
from capo_ds.scoring import Scored, _spread
from capo_ds.tasks import Problem, Verdict
from capo_ds.tasks.groups import Groups
from capo_ds.tasks.outcome import Comparison

PROBLEMS = [Problem("1", "1", source="a"), Problem("2", "2", source="b")]
RIGHT = Verdict(1.0, True, True, Comparison.EQUAL)
UNPARSED = Verdict(-0.5, True, False, Comparison.UNPARSED)
BAD = Verdict(-1.0, False, False)


def test_every_metric_also_by_data_set():
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]], dtype=torch.bool)
    entropy = torch.arange(12.0).view(4, 3)
    truncated = torch.tensor([True, False, False, False])
    ids = torch.zeros(4, 3, dtype=torch.long)
    rollout = Rollout(ids, ids.bool(), ids, mask, entropy, entropy, truncated)
    scored = Scored(
        problems=[PROBLEMS[0], PROBLEMS[0], PROBLEMS[1], PROBLEMS[1]],
        texts=[""] * 4,
        verdicts=[RIGHT, BAD, UNPARSED, RIGHT],
        rewards=torch.tensor([[1.0, -1.0], [-0.5, 1.0]], dtype=torch.float64),
        rounding=torch.zeros(2, 2, dtype=torch.float64),
        parts={"rule": [1.0, -1.0, -0.5, 1.0], "x/mine.py:f": [0.5, None, None, 2.0]},
        advantages=torch.tensor([1.0, -1.0, 0.0, 0.0]),
    )
    measured = scored.measures(rollout, Groups(PROBLEMS))
    means = {name: values.double().mean().item() for name, values in measured.items()}
    whole = [name for name in means if "by_source" not in name]
    for name in whole:
        room, _, last = name.partition("/")
        for source in "ab":
            assert f"{room}/by_source/{source}/{last}" in means
    assert means["rollout/length"] == 9 / 4
    assert means["rollout/by_source/a/length"] == 2.0
    assert means["rollout/by_source/a/truncated"] == 0.5
    assert means["rollout/by_source/b/entropy"] == (6 + 7 + 9 + 10 + 11) / 5
    assert means["reward/by_source/b/unparsed"] == 0.5 and means["reward/unparsed"] == 0.25
    assert means["reward/functions/mine.py:f"] == 1.25
    assert means["reward/by_source/a/functions/mine.py:f"] == 0.5
    assert means["reward/by_source/b/zero_advantage"] == 1.0
    assert "reward/by_source/a/mean" in Scored.measures(scored, rollout, Groups(PROBLEMS))
    one = scored.measures(rollout, Groups(PROBLEMS[:1]))
    assert not any("by_source" in name for name in one)


def test_a_rank_without_prompts_measures_nothing_and_says_nothing():
    nothing = torch.zeros(0, 3, dtype=torch.long)
    none = nothing.double()
    rollout = Rollout(nothing, nothing.bool(), nothing, nothing.bool(), none, none, none[:, 0] > 0)
    scored = Scored([], [], [], torch.zeros(0, 2).double(), torch.zeros(0, 2).double(), {}, none)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measured = scored.measures(rollout, Groups([]))
    assert all(values.numel() == 0 for values in measured.values())


def test_the_spread_of_groups_is_their_standard_deviation():
    rewards = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(_spread(rewards), rewards.std(1))


@pytest.mark.parametrize(
    ("prompts", "told"),
    [(4, ""), (3, "; rank 3 has no prompts"), (1, "; ranks 1 to 3 have no prompts")],
)
def test_ranks_without_prompts_are_told(prompts, told):
    config = parse_config({"rollout": {"prompts_per_step": prompts}})
    text = without_prompts(config, 4)
    assert text == (told and f"{told} in a step (raise rollout.prompts_per_step)")
