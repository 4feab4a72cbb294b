"""Which prompts of a step each of its updates takes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from capo_ds.config import Config
from capo_ds.seeding import Stream, generator


def mini_batches(config: Config, step: int) -> Iterator[np.ndarray]:
    """Numbers within the step of the prompts of each mini-batch, epoch by epoch; the same on any
    number of ranks."""
    objective = config.objective
    for epoch in range(objective.epochs):
        random = generator(config.train.seed, Stream.MINIBATCH_ORDER, step, epoch)
        order = random.permutation(config.rollout.prompts_per_step)
        yield from np.array_split(order, objective.minibatches)
