"""From the Gram matrix of all ranks' samples to their coefficients in g~, on rank 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from tqdm import tqdm

from capo_ds.aggregation.update import Samples, Solved, Solver
from capo_ds.config import Config
from capo_ds.distributed import comm
from capo_ds.learning.batch import Batch
from capo_ds.not_finite import not_finite
from capo_ds.seeding import Stream, generator, update_seed


@dataclass(frozen=True)
class Roster:
    """The samples of an update on all ranks, in rank order.

    counts: of each rank's. advantages: (N,), 0 for a sample without policy gradient. numbers: (N,)
    of the responses within the step.
    """

    counts: list[int]
    advantages: np.ndarray
    numbers: np.ndarray

    @staticmethod
    def gather(batch: Batch, live: Tensor) -> Roster:
        """live: (n,) of bool, the batch's samples with a policy gradient (all ranks)."""
        mine = (batch.advantages * live).cpu().numpy(), batch.numbers.cpu().numpy()
        shares = comm.gather(mine)
        advantages, numbers = map(np.concatenate, zip(*shares, strict=True))
        return Roster([len(signs) for signs, _ in shares], advantages, numbers)

    def __len__(self) -> int:
        return sum(self.counts)

    @property
    def mine(self) -> slice:
        """This rank's among all."""
        first = sum(self.counts[: comm.rank()])
        return slice(first, first + self.counts[comm.rank()])


def solve(
    solver: Solver,
    config: Config,
    grams: np.ndarray,
    roster: Roster,
    total: int,
    number: int,
    sources: Sequence[str],
) -> Solved:
    """The aggregation and its measures.

    Args:
        grams: (blocks, N, N).
        total: how many samples g_0 is the mean of.
        number: of the optimizer step in the run.
        sources: of several data sets, that of each prompt of the step.

    Raises:
        NotFiniteError: no sample has a finite gradient.
    """
    prompts = roster.numbers // config.rollout.group_size
    named = np.array(sources)[prompts] if sources else None
    samples = Samples(grams, np.sign(roster.advantages), prompts, total, named)
    random = generator(config.train.seed, Stream.HELDOUT_HALVES, number)
    solved = solver.solve(samples, random, seed=update_seed(config.train.seed, number))
    if solved.dropped.all():
        raise not_finite("every sample's gradient is NaN or Inf", config)
    _tell(solved, config.aggregator, len(roster))
    return solved


def _tell(solved: Solved, aggregator: str, samples: int) -> None:
    """What the user should see of it at once."""
    if dropped := int(solved.dropped.sum()):
        tqdm.write(f"left out {dropped} of {samples} samples: NaN or Inf in the gradient")
    for result in solved.results:
        if result.status in ("fallback", "inaccurate"):
            tqdm.write(f"{aggregator}: {result.status} solution, {result.report}")
