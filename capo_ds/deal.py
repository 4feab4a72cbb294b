"""Which prompts and responses of a step fall to this rank, and in which order they are learned.

All of it follows from the settings, the number of the step and that of the rank; the prompts,
their responses' numbers and the mini-batches of a step are the same on any number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from capo_ds.config import Config
from capo_ds.distributed import comm
from capo_ds.learning.batch import Batch
from capo_ds.learning.mini_batches import mini_batches
from capo_ds.rollout.base import Draw
from capo_ds.tasks import Problem
from capo_ds.tasks.mixture import PromptOrder


class Deal:
    """Prompts are dealt out by their numbers within the step: k to rank k modulo the ranks."""

    def __init__(self, config: Config, problems: list[Problem], order: PromptOrder):
        self.config, self.problems, self.order = config, problems, order
        self.numbers = comm.shard(list(range(config.rollout.prompts_per_step)))  # of our prompts

    def prompts(self, step: int) -> list[Problem]:
        """This rank's."""
        order = self.order(step)
        return [self.problems[order[number]] for number in self.numbers]

    def draws(self, step: int) -> list[Draw]:
        """What the responses to each of them are drawn by."""
        return [Draw(self.config.train.seed, step, number) for number in self.numbers]

    def replacements(
        self, step: int, attempt: int, groups: list[int]
    ) -> tuple[list[Problem], list[Draw]]:
        """Other prompts in the place of some of this rank's, each of the same data set; attempt:
        from 1. They depend on seed, step, attempt and the prompt's number alone."""
        per_step = self.config.rollout.prompts_per_step
        slots = [self.numbers[group] for group in groups]
        numbers = [attempt * per_step + slot for slot in slots]
        rows = [self.order.replacement(step, *at) for at in zip(numbers, slots, strict=True)]
        draws = [Draw(self.config.train.seed, step, number) for number in numbers]
        return [self.problems[row] for row in rows], draws

    def sources(self, step: int) -> list[str]:
        """Of several data sets, that of each prompt of the step, over all ranks; else none."""
        if len(self.config.task.entries) == 1:
            return []
        return [self.problems[row].source for row in self.order(step)]

    def responses(self) -> Tensor:
        """(n,) of each response of this rank, its number within the step over all ranks."""
        group, device = self.config.rollout.group_size, comm.device()
        first = group * torch.tensor(self.numbers, dtype=torch.long, device=device)
        return (first[:, None] + torch.arange(group, device=device)).flatten()

    def minibatches(self, batch: Batch, step: int) -> Iterator[Batch]:
        """This rank's part of each mini-batch of prompts, epoch by epoch."""
        group = self.config.rollout.group_size
        for numbers in mini_batches(self.config, step):
            local = numbers[numbers % comm.world_size() == comm.rank()] // comm.world_size()
            rows = np.sort(local)[:, None] * group + np.arange(group)
            yield batch.take(torch.as_tensor(rows.flatten()))
