"""Prompts whose responses all get the same reward are asked again as other prompts: DAPO's dynamic
sampling (Yu et al. 2025, section 3.2). Such a group has no advantage, and so no gradient."""

from __future__ import annotations

from collections.abc import Callable

from capo_ds.deal import Deal
from capo_ds.distributed import comm
from capo_ds.rollout.base import Draw, Rollout, concatenate
from capo_ds.scoring import Judged
from capo_ds.tasks import Problem

Sample = Callable[[list[Problem], list[Draw]], Rollout]
Judging = Callable[[list[Problem], Rollout], Judged]


def with_signal(
    rollout: Rollout,
    judged: Judged,
    step: int,
    deal: Deal,
    limit: int,
    pad: int,
    sample: Sample,
    judge: Judging,
) -> tuple[Rollout, Judged, int]:
    """This rank's responses with groups without signal replaced, at most `limit` times each, and
    how many were (all ranks, equally often).

    What stands in a group's place depends on its number and the rewards so far alone: on neither
    ranks nor other groups. pad: the token that fills rows.
    """
    replaced = 0
    for attempt in range(1, limit + 1):
        groups = judged.without_signal()
        if not comm.max_over_ranks(len(groups)):
            break
        problems, draws = deal.replacements(step, attempt, groups)
        others = sample(problems, draws)
        rows = _rows(groups, *judged.rewards.shape)
        judged = (judged + judge(problems, others)).take(rows)
        rollout = concatenate([rollout, others], pad).take(rows)
        replaced += len(groups)
    return rollout, judged, replaced


def _rows(groups: list[int], prompts: int, size: int) -> list[int]:
    """Of prompts x size rows with those of the new groups after them, which ones, so that a new
    group stands in the place of each of `groups`."""
    place = {group: prompts + number for number, group in enumerate(groups)}
    return [place.get(group, group) * size + row for group in range(prompts) for row in range(size)]
