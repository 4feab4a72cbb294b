"""Groups without signal are replaced, each by itself: on one rank or several."""

import numpy as np
import pytest
import torch

from capo_ds.config import ConfigError, parse_config
from capo_ds.deal import Deal
from capo_ds.distributed import comm
from capo_ds.dynamic_sampling import with_signal
from capo_ds.rollout.rollout import Rollout, assemble
from capo_ds.scoring import Judged
from capo_ds.tasks import Problem, Verdict
from capo_ds.tasks.mixture import PromptOrder, by_source

GROUP, PROMPTS = 2, 6
PROBLEMS = [Problem(str(n), str(n), source="ab"[n % 2]) for n in range(40)]
CONFIG = parse_config(
    {
        "rollout": {"prompts_per_step": PROMPTS, "group_size": GROUP},
        "task": {"mixture": [{"path": "a.jsonl", "label": "a"}, {"path": "b.jsonl", "label": "b"}]},
    }
)


def sample(problems, draws) -> Rollout:
    """Responses that tell their prompt's number within the step, of unequal lengths."""
    rows = [
        (int(p.prompt), d.prompt, g) for p, d in zip(problems, draws, strict=True) for g in (0, 1)
    ]
    tokens = [[number] * (1 + number % 3) for _, number, _ in rows]
    return assemble(
        [[1] * (1 + problem % 4) for problem, _, _ in rows],
        tokens,
        [[-0.5] * len(row) for row in tokens],
        [False] * len(rows),
        0,
        torch.device("cpu"),
    )


def judge(heard: set[int]):
    """Judges: a group has signal if its problem's number is among these."""

    def judged(problems, rollout) -> Judged:
        rewards = torch.tensor([[1.0, float(int(p.prompt) not in heard)] for p in problems])
        rewards = rewards.double().view(-1, GROUP)
        repeated = [p for p in problems for _ in range(GROUP)]
        words = [str(int(ids[0])) for ids in rollout.completion_ids]
        verdicts = [Verdict(reward, True, True) for reward in rewards.flatten().tolist()]
        parts = {"rule": rewards.flatten().tolist()}
        return Judged(repeated, words, verdicts, rewards, torch.zeros_like(rewards), parts)

    return judged


def deal_of(monkeypatch, rank: int, ranks: int) -> Deal:
    monkeypatch.setattr(comm, "rank", lambda: rank)
    monkeypatch.setattr(comm, "world_size", lambda: ranks)
    monkeypatch.setattr(comm, "device", lambda: torch.device("cpu"))
    monkeypatch.setattr(comm, "max_over_ranks", lambda value: 1)  # another rank has some
    order = PromptOrder(list(by_source(PROBLEMS).values()), [0.5, 0.5], PROMPTS, seed=3)
    return Deal(CONFIG, PROBLEMS, order)


def refined(monkeypatch, heard, limit, step=1, rank=0, ranks=1):
    deal = deal_of(monkeypatch, rank, ranks)
    problems = deal.prompts(step)
    rollout = sample(problems, deal.draws(step))
    judging = judge(heard)
    first = judging(problems, rollout)

    def others(attempt, groups):
        problems, draws = deal.replacements(step, attempt, groups)
        return problems, sample(problems, draws)

    return deal, first, *with_signal(rollout, first, others, judging, limit, 0)


def test_only_groups_without_signal_change(monkeypatch):
    heard = set(range(0, 40, 3))
    _, first, rollout, judged, replaced = refined(monkeypatch, heard, limit=20)
    dead = set(first.without_signal())
    assert 0 < len(dead) < PROMPTS
    assert {group for group, times in enumerate(replaced) if times} == dead
    assert judged.without_signal() == []
    numbers = [int(text) for text in judged.texts[::GROUP]]
    for group, (before, after) in enumerate(
        zip(first.problems[::GROUP], judged.problems[::GROUP], strict=True)
    ):
        assert before.source == after.source  # the mixture's weights hold
        assert (numbers[group] == group) == (before == after) == (group not in dead)
        assert numbers[group] % PROMPTS == group
        rows = slice(GROUP * group, GROUP * (group + 1))
        assert (rollout.completion_ids[rows, 0] == numbers[group]).all()
        assert rollout.lengths[rows].tolist() == [1 + numbers[group] % 3] * GROUP
        assert rollout.prompt_mask[rows].sum(1).tolist() == [1 + int(after.prompt) % 4] * GROUP
        assert judged.parts["rule"][rows] == judged.rewards[group].tolist() == [1.0, 0.0]
    assert rollout.completion_ids.shape[1] == int(rollout.lengths.max())


@pytest.mark.parametrize("limit", [0, 1, 2])
def test_the_limit_holds_where_nothing_has_signal(monkeypatch, limit):
    _, first, _, judged, replaced = refined(monkeypatch, set(), limit)
    assert replaced == [limit] * PROMPTS and len(judged.without_signal()) == PROMPTS
    assert (judged.texts == first.texts) == (limit == 0)


def test_the_same_on_any_number_of_ranks(monkeypatch):
    heard = set(range(0, 40, 3))
    _, _, whole, judged, _ = refined(monkeypatch, heard, limit=3)
    for ranks in (2, 4):
        for rank in range(ranks):
            deal, _, part, own, _ = refined(monkeypatch, heard, 3, rank=rank, ranks=ranks)
            rows = (np.array(deal.numbers)[:, None] * GROUP + np.arange(GROUP)).flatten().tolist()
            assert own.texts == [judged.texts[row] for row in rows]
            assert own.problems == [judged.problems[row] for row in rows]
            assert torch.equal(part.lengths, whole.lengths[rows])


def test_rewards_that_differ_by_rounding_are_no_signal():
    rewards = torch.tensor([[0.3, 0.1 + 0.2], [1e-9, 2e-9], [1.0, 1.0]], dtype=torch.float64)
    rounding = torch.tensor([[5e-17, 5e-17], [1e-25, 1e-25], [0.0, 0.0]], dtype=torch.float64)
    judged = Judged([], [], [], rewards, rounding, {})
    assert judged.without_signal() == [0, 2]


def test_not_with_responses_that_were_asked_for_early():
    rollout = {"sampler": "process", "ahead": 1, "dynamic_sampling": 2}
    with pytest.raises(ConfigError, match=r"dynamic_sampling: 2 .* set one of the two to 0"):
        parse_config({"rollout": rollout})
