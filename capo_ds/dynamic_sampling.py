"""Prompts whose responses all get the same reward are asked again as other prompts: DAPO's dynamic
sampling (Yu et al. 2025, section 3.2). Such a group has no advantage, and so no gradient."""

from __future__ import annotations

from collections.abc import Callable

from capo_ds.distributed import comm
from capo_ds.rollout.rollout import Rollout, concatenate
from capo_ds.scoring import Judged
from capo_ds.tasks import Problem

# Of an attempt (from 1) and some of this rank's groups: other prompts instead, and responses.
Others = Callable[[int, list[int]], tuple[list[Problem], Rollout]]
Judging = Callable[[list[Problem], Rollout], Judged]


def with_signal(
    rollout: Rollout, judged: Judged, others: Others, judge: Judging, limit: int, pad: int
) -> tuple[Rollout, Judged, list[int]]:
    """This rank's responses with groups without signal replaced, each at most `limit` times; and
    how often each was. All ranks make equally many attempts.

    pad: the token that fills rows.
    """
    replaced = [0] * len(judged.rewards)
    for attempt in range(1, limit + 1):
        groups = judged.without_signal()
        if not comm.max_over_ranks(len(groups)):
            break
        problems, responses = others(attempt, groups)
        rows = _rows(groups, *judged.rewards.shape)
        judged = (judged + judge(problems, responses)).take(rows)
        rollout = concatenate([rollout, responses], pad).take(rows)
        for group in groups:
            replaced[group] += 1
    return rollout, judged, replaced


def _rows(groups: list[int], prompts: int, size: int) -> list[int]:
    """Of prompts x size rows with those of the new groups after them, which ones, so that a new
    group stands in the place of each of `groups`."""
    place = {group: prompts + number for number, group in enumerate(groups)}
    return [place.get(group, group) * size + row for group in range(prompts) for row in range(size)]
