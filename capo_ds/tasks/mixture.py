"""Which problems a step draws, from one data set or from a mixture of several."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial

import numpy as np

from capo_ds.seeding import Stream, generator
from capo_ds.tasks.base import Problem


class PromptOrder:
    """Indices of the problems that each step draws; the same on any number of ranks.

    A step's prompts are shared out over the data sets by systematic sampling: slot i of P belongs
    to the data set on whose stretch of [0, 1), as long as its weight, the point (u + i) / P lies,
    with one uniform u a step. So each step has a data set's share of P within one prompt, and in
    expectation exactly. From each data set the prompts come as a stream of one seeded permutation
    after another: each problem is drawn once an epoch of its data set.

    All follows from the seed and the step: resuming needs no cursor. (How many prompts earlier
    steps have drawn of each data set is counted once, and kept.)
    """

    def __init__(
        self, members: Sequence[np.ndarray], weights: Sequence[float], per_step: int, seed: int
    ):
        """members: of each data set, the indices of its problems, at least one; weights: of each,
        with sum 1."""
        self.members, self.per_step, self.seed = members, per_step, seed
        self._bounds = np.cumsum(weights)[:-1]
        self._permutation = lru_cache(2 * len(members))(partial(_permutation, seed))
        self._drawn = [np.zeros(len(members), dtype=np.int64)]  # before each step, of each data set

    def __call__(self, step: int) -> list[int]:
        sources = self.sources(step)
        place = self._drawn_before(step).copy()
        order = []
        for source in sources.tolist():
            order.append(self._problem(source, int(place[source])))
            place[source] += 1
        return order

    def sources(self, step: int) -> np.ndarray:
        """(P,) numbers of the data sets that a step's prompts are drawn from."""
        if len(self.members) == 1:
            return np.zeros(self.per_step, dtype=np.int64)
        start = generator(self.seed, Stream.MIXTURE, step).random()
        points = (start + np.arange(self.per_step)) / self.per_step
        return np.searchsorted(self._bounds, points, side="right")

    def replacement(self, step: int, number: int, slot: int) -> int:
        """Any problem of the data set of a step's slot. number: of the draw, its own in a step."""
        members = self.members[self.sources(step)[slot]]
        draw = generator(self.seed, Stream.REPLACEMENT, step, number)
        return int(members[draw.integers(len(members))])

    def _drawn_before(self, step: int) -> np.ndarray:
        while len(self._drawn) <= step:
            counts = np.bincount(self.sources(len(self._drawn) - 1), minlength=len(self.members))
            self._drawn.append(self._drawn[-1] + counts)
        return self._drawn[step]

    def _problem(self, source: int, place: int) -> int:
        """The index of the problem at a place in a data set's stream."""
        members = self.members[source]
        epoch, position = divmod(place, len(members))
        return int(members[self._permutation(epoch, source, len(members))[position]])


def _permutation(seed: int, epoch: int, source: int, size: int) -> np.ndarray:
    return generator(seed, Stream.PROMPT_ORDER, epoch, source).permutation(size)


def by_source(problems: Sequence[Problem]) -> dict[str, np.ndarray]:
    """The indices of the problems of each data set, in the order in which the labels come."""
    labels = np.array([problem.source for problem in problems])
    return {label: np.flatnonzero(labels == label) for label in dict.fromkeys(labels.tolist())}
