"""A step's responses judged: rewards, advantages, and what is told of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from capo_ds.advantages import advantages
from capo_ds.config import Config
from capo_ds.distributed import comm
from capo_ds.learning.batch import Heard
from capo_ds.objective import Objective, step_advantages
from capo_ds.parts import shortest
from capo_ds.rollout.rollout import Rollout
from capo_ds.tasks import Problem, Scorer, Verdict
from capo_ds.tasks.groups import Groups
from capo_ds.tasks.outcome import Comparison
from capo_ds.tasks.prompts import decode
from capo_ds.telemetry.metrics import Measured

# Answers that count as wrong because they could not be compared.
JUDGED = {
    "reward/unparsed": Comparison.UNPARSED,
    "reward/timed_out": Comparison.TIMED_OUT,
    "reward/unjudged": Comparison.UNJUDGED,
}
# Of a response that no update made anything of: it had no gradient.
NOT_HEARD: dict[str, float | None] = dict.fromkeys(
    ("norm", "cosine_before", "cosine_after", "xi", "weight")
)


@dataclass
class Judged:
    """One rank's responses of a step, as text and judged; groups are neighbours."""

    problems: list[Problem]  # of each response
    texts: list[str]
    verdicts: list[Verdict]
    rewards: Tensor  # (prompts, G), float64 on the CPU
    rounding: Tensor  # (prompts, G), of the terms of each reward
    parts: dict[str, list[float | None]]  # of the rewards, by function

    def without_signal(self) -> list[int]:
        """The groups whose rewards are all alike, but for rounding."""
        differ = advantages(self.rewards, "group", "none", self.rounding).any(1)
        return (~differ).nonzero().flatten().tolist()

    def take(self, rows: list[int]) -> Judged:
        """Some of the responses, in whole groups."""
        size = self.rewards.shape[1]
        groups = [row // size for row in rows[::size]]
        return Judged(
            [self.problems[row] for row in rows],
            [self.texts[row] for row in rows],
            [self.verdicts[row] for row in rows],
            self.rewards[groups],
            self.rounding[groups],
            {name: [given[row] for row in rows] for name, given in self.parts.items()},
        )

    def __add__(self, other: Judged) -> Judged:
        return Judged(
            self.problems + other.problems,
            self.texts + other.texts,
            self.verdicts + other.verdicts,
            torch.cat([self.rewards, other.rewards]),
            torch.cat([self.rounding, other.rounding]),
            {name: given + other.parts[name] for name, given in self.parts.items()},
        )


@dataclass
class Scored(Judged):
    """With the advantages, which depend on the whole step."""

    advantages: Tensor  # (prompts * G,)

    def measures(self, rollout: Rollout, groups: Groups) -> Measured:
        """Metrics of the step's responses, each also of every group of problems.

        groups: of problems that have metrics apart: data sets, levels.
        """
        found, known = self._values(rollout)
        rows_of = groups.rows(self.problems[:: self.rewards.shape[1]])
        measured: Measured = {}
        for name, values in found.items():
            counted = known.get(name, torch.ones_like(values, dtype=torch.bool))
            measured[name] = values[counted]
            room, _, last = name.partition("/")
            for group, rows in rows_of.items():
                measured[f"{room}/{group}/{last}"] = values[rows][counted[rows]]
        return measured

    def _values(self, rollout: Rollout) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """By metric: of each prompt (P,), response (P, G) or token (P, G, T); and of those that are
        not known everywhere, where they are."""
        shape = self.rewards.shape
        correct = torch.tensor([verdict.correct for verdict in self.verdicts]).double().view(shape)
        formatted = torch.tensor([verdict.formatted for verdict in self.verdicts]).double()
        right, mask = correct.mean(1), rollout.completion_mask
        found = {
            "reward/mean": self.rewards,
            "reward/group_std": _spread(self.rewards),
            "reward/accuracy": correct,
            "reward/formatted": formatted.view(shape),
            "reward/groups_all_right": right == 1,
            "reward/groups_all_wrong": right == 0,
            "reward/zero_advantage": self.advantages.view(shape) == 0,
            "rollout/length": rollout.lengths.view(shape),
            "rollout/truncated": rollout.truncated.view(shape),
            "rollout/entropy": rollout.entropy.view(*shape, mask.shape[1]),
        }
        known = {"rollout/entropy": mask.view(*shape, mask.shape[1])}
        for name, outcome in JUDGED.items():
            judged = torch.tensor([v.comparison is outcome for v in self.verdicts])
            found[name] = judged.view(shape)
        if len(self.parts) > 1:
            names = shortest(self.parts)
            for function, given in self.parts.items():
                name = f"reward/functions/{names[function]}"
                paid = [math.nan if reward is None else reward for reward in given]
                found[name] = torch.tensor(paid, dtype=torch.float64).view(shape)
                known[name] = ~found[name].isnan()
        return found, known


def _spread(rewards: Tensor) -> Tensor:
    """(P,) standard deviation within each group; `Tensor.std` warns where a rank has no prompts."""
    deviations = rewards - rewards.mean(1, keepdim=True)
    return (deviations.square().sum(1) / (rewards.shape[1] - 1)).sqrt()


def judge(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    scorer: Scorer,
    problems: list[Problem],
    rollout: Rollout,
) -> Judged:
    """Judge G responses to each of this rank's problems (all ranks).

    Raises:
        PeerError: on all ranks, if it fails on any.
    """
    group = config.rollout.group_size
    repeated = [problem for problem in problems for _ in range(group)]
    with comm.together("scoring"):
        texts = decode(tokenizer, rollout, config.prompt.stop)
        scores = scorer(texts, repeated, rollout.responses())
        rewards = torch.tensor(scores.rewards, dtype=torch.float64).view(-1, group)
        rounding = torch.tensor(scores.roundings, dtype=torch.float64).view(-1, group)
    return Judged(repeated, texts, scores.verdicts, rewards, rounding, scores.parts)


def score(config: Config, objective: Objective, judged: Judged) -> Scored:
    """The advantages of what has been judged (all ranks)."""
    values = _advantages(config, objective, judged.rewards, judged.rounding)
    return Scored(**vars(judged), advantages=values)


def _advantages(config: Config, objective: Objective, rewards: Tensor, rounding: Tensor) -> Tensor:
    """(n,) of this rank's responses, from the rewards (prompts, G) of the whole step: baseline
    and scale may be the step's."""
    everyone = comm.unshard(list(zip(rewards, rounding, strict=True)))
    with comm.together("advantages"):
        rewards, rounding = map(torch.stack, zip(*everyone, strict=True))
        values = step_advantages(objective, config.objective, rewards, rounding)
        mine = values[comm.rank() :: comm.world_size()]
        return mine.flatten().float().to(comm.device())


def sample_records(
    scored: Scored, rollout: Rollout, numbers: Tensor, heard: Heard
) -> list[dict[str, Any]]:
    """All responses of the step on all ranks, in order of their numbers, for the logs (all ranks).

    numbers: (n,) of this rank's responses. heard: what the updates made of them.
    """
    group, lengths = scored.rewards.shape[1], rollout.lengths.tolist()
    rewards, advantages = scored.rewards.flatten().tolist(), scored.advantages.tolist()
    truncated = rollout.truncated.tolist()
    mine = [
        {
            "prompt_number": number // group,
            "source": problem.source,
            "prompt": problem.prompt,
            "completion": scored.texts[row],
            "answer": problem.answer,
            "verdict": scored.verdicts[row].word,
            "why": scored.verdicts[row].told,
            "length": lengths[row],
            "truncated": truncated[row],
            "reward": rewards[row],
            "rewards": {name: given[row] for name, given in scored.parts.items()},
            "advantage": advantages[row],
            **heard.get(number, NOT_HEARD),
        }
        for row, (number, problem) in enumerate(zip(numbers.tolist(), scored.problems, strict=True))
    ]
    shares = comm.gather(list(zip(numbers.tolist(), mine, strict=True)))
    return [sample for _, sample in sorted(chain(*shares), key=itemgetter(0))]
