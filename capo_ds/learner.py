"""From a batch of scored responses to one optimizer step: passes, collect, solve, rebuild, apply.

Each stage is a module of `capo_ds/learning/` that takes values and returns one; `Learner.update` is
the line of them. (`capo_ds/distributed/gram.py` is between collect and solve, the engine at the
end.) Every method is called on all ranks together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import cast

import numpy as np
import torch
from torch import Tensor

from capo_ds.config import Config
from capo_ds.configured import make_solver, sketches
from capo_ds.distributed import comm
from capo_ds.distributed.engine import CapoEngine
from capo_ds.distributed.gram import gram_matrices
from capo_ds.gradients.per_sample import PerSampleGradients
from capo_ds.gradients.store import Store
from capo_ds.learning.batch import Batch, Heard, WeightedBatch
from capo_ds.learning.blocks import blocks_of
from capo_ds.learning.collect import Stores, collect
from capo_ds.learning.passes import PolicyPasses
from capo_ds.learning.rebuild import rebuild
from capo_ds.learning.solve import Roster, solve
from capo_ds.models import reference_policy
from capo_ds.not_finite import check_finite
from capo_ds.objective import token_weights
from capo_ds.rollout.rollout import Rollout
from capo_ds.seeding import update_seed
from capo_ds.telemetry.metrics import Measured, PhaseTimer


@dataclass(frozen=True)
class Update:
    """What is told of one update.

    measures: metrics of this rank. heard: of all ranks' responses, see `Solved.heard`.
    """

    measures: list[Measured]
    heard: Heard = field(default_factory=dict)


class Learner:
    """Owns the policy's passes in training and the engine's steps.

    store_kind: `device`, `host` or `recompute`.
    timer: where phase times are added up.
    """

    def __init__(self, config: Config, engine: CapoEngine, store_kind: str, timer: PhaseTimer):
        self.config, self.engine, self.store_kind, self.timer = config, engine, store_kind, timer
        self.passes = PolicyPasses(config, engine)
        self.per_sample = (
            PerSampleGradients(engine.module) if config.uses_per_sample_gradients else None
        )
        self.blocks = blocks_of(engine.names, config.program.blocks)  # of each factor
        self.solver = make_solver(config)
        self.sketch_of = sketches(config.gradients, engine.shapes)  # by its seed

    def prepare(self, rollout: Rollout, advantages: Tensor, numbers: Tensor) -> Batch:
        """Attach advantages (n,), the responses' numbers in the step (n,) and the log-probabilities
        that stay fixed over the updates.

        Raises `PeerError` on all ranks if any fails.
        """
        behaviour = reference = torch.zeros_like(rollout.log_probs)
        with self.passes.around("log-probabilities"):
            if not self.config.on_policy:
                behaviour = self.passes.fixed_log_probs(rollout)
            if self.config.objective.kl_weight:
                with reference_policy(self.engine.module):
                    reference = self.passes.fixed_log_probs(rollout)
        return Batch(
            **vars(rollout),
            advantages=advantages,
            behaviour=behaviour,
            reference=reference,
            numbers=numbers,
        )

    def update(self, batch: Batch, number: int, sources: Sequence[str] = ()) -> Update:
        """One optimizer step on a mini-batch, of which this rank holds `batch` (maybe empty).

        number: of the optimizer step in the run; with the seed it decides what is random in it.
        sources: of several data sets, that of each prompt of the step.
        Raises `PeerError` on all ranks if any fails.
        """
        weighted, samples = self._weighted(batch)
        before: Measured = {"loss/learning_rate": self.engine.learning_rate}
        if self.per_sample is None:
            gradient, told = self._mean(weighted, samples)
        else:
            gradient, told = self._aggregate(weighted, samples, number, sources)
        with self.timer("optimizer"):
            with comm.together("gradient"):
                check_finite(gradient, self.config)
            norm = self.engine.apply(gradient)
        after: Measured = {"loss/grad_norm": norm, "comm/optimizer_bytes": self.engine.bytes_sent}
        for kind, count in comm.take_bytes_sent().items():
            after[f"comm/{kind}_bytes"] = count
        return Update([before, *told.measures, after], told.heard)

    def _weighted(self, batch: Batch) -> tuple[WeightedBatch, int]:
        """This rank's samples with a gradient, in order of width for micro-batches of little
        padding; and N, over all ranks, of g_0's mean."""
        mask = self.passes.counted_tokens(batch)
        samples, tokens = comm.sum_over_ranks(len(batch), float(mask.sum()))
        # Without KL, a sample of zero advantage has no gradient: it counts in N and costs nothing.
        active = mask.any(1) & ((batch.advantages != 0) | (self.config.objective.kl_weight > 0))
        rows = active.nonzero().squeeze(1)
        batch = batch.select(rows[batch.widths[rows].argsort(stable=True)])
        weights = token_weights(
            self.passes.counted_tokens(batch).sum(1).float(),
            self.config.objective.loss_aggregation,
            int(samples),
            tokens,
            self.config.rollout.max_new_tokens,
        )
        return batch.weighted(weights), int(samples)

    def _mean(self, batch: WeightedBatch, samples: int) -> tuple[list[Tensor], Update]:
        """This rank's part of g_0, without per-sample gradients; `samples` is N."""
        with self.timer("backward"), self.passes.around("backward"):
            coefficients = torch.ones_like(batch.weights) / samples
            gradient, measures = self.passes.weighted_gradient(batch, coefficients)
        return gradient, Update(measures)

    def _aggregate(
        self, batch: WeightedBatch, samples: int, number: int, sources: Sequence[str]
    ) -> tuple[list[Tensor], Update]:
        """This rank's part of g~; `samples` is N of g_0's mean."""
        assert self.per_sample is not None  # the aggregator looks at samples
        with self.timer("backward"), self.passes.around("per-sample gradients"):
            store = self._new_store(batch, number)
            collected = collect(self.passes, self.per_sample, store, batch)
        roster = Roster.gather(batch, collected.live)
        if not len(roster):  # no sample of any rank has a gradient: g~ = g_0 = 0
            return self.engine.zeros(), Update(collected.measures)
        with self.timer("gram"), comm.collective("Gram matrix"):
            blocks = [0] if store.sketch else self.blocks  # of each matrix
            grams = gram_matrices(store.matrices(), roster.counts, blocks, max(blocks) + 1)
        with self.timer("solve"):
            known = cast(np.ndarray, grams)  # on rank 0, which solves
            answer = partial(solve, self.solver, self.config, known, roster, samples)
            solved = comm.on_main("solve", partial(answer, number, sources))
        store.discard(torch.as_tensor(solved.mean_weights[roster.mine] == 0))
        with self.timer("reconstruct"):
            rebuilt = rebuild(solved, roster.mine, store, self.blocks, self.passes)
        measures = [*collected.measures, solved.metrics, rebuilt.measures]
        return rebuilt.gradient, Update(measures, solved.heard(roster.numbers, samples))

    @cached_property
    def _stores(self) -> Stores:
        """Made at the first update: a resumed run may have changed `store_kind`."""
        dtype = getattr(torch, self.config.gradients.dtype)
        return Stores(self.store_kind, dtype, self.engine.shapes)

    def _new_store(self, batch: WeightedBatch, number: int) -> Store:
        # New signs for every update: the error of one sketch is shared by all its samples.
        sketch = self.sketch_of and self.sketch_of(update_seed(self.config.train.seed, number))

        def weighted_sum(coefficients: Tensor) -> list[Tensor]:
            return self.passes.weighted_gradient(batch, coefficients)[0]

        return self._stores.new(len(batch), sketch, weighted_sum)
