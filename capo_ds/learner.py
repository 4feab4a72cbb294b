"""From a batch of scored responses to one optimizer step (DESIGN: per-sample gradients, Gram
matrix, solve, reconstruct, step). Every method is called on all ranks together."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from capo_ds.aggregation.update import Samples, Solved
from capo_ds.config import Config
from capo_ds.configured import make_solver, sketches
from capo_ds.distributed import comm
from capo_ds.distributed.engine import CapoEngine
from capo_ds.distributed.gram import gram_matrices, norms_of_sums
from capo_ds.gradients.per_sample import PerSampleGradients
from capo_ds.gradients.store import GradientStore, HostStore, SketchStore
from capo_ds.models import reference_policy, token_log_probs
from capo_ds.objective import (
    importance_weights,
    make_objective,
    token_objective,
    token_weights,
)
from capo_ds.objectives import MAX_LOG_RATIO, Tokens
from capo_ds.rollout.base import TOKEN, Rollout, Rows
from capo_ds.seeding import Stream, generator
from capo_ds.telemetry.metrics import Means, PhaseTimer

SEQUENCE_RATIO_SQUARE = "rollout/sequence_ratio_square"
SEED_STRIDE = 1_000_003  # so that the updates of runs with neighbouring seeds do not meet
SKETCHED_NORMS = ("sketch/vanilla_norm", "sketch/direction_norm")  # as the Gram matrix has them


@dataclass
class Batch(Rollout):
    """A rollout with what the objective needs of it."""

    advantages: Tensor  # (n,)
    behaviour: Tensor = field(metadata=TOKEN)  # log-probabilities under the sampling policy
    reference: Tensor = field(metadata=TOKEN)  # and under the reference
    weights: Tensor  # (n,) weight of a sample's tokens in J; `update` sets it
    numbers: Tensor  # (n,) of the response within the step, over all ranks; a group's follow on


def idle(batch: Rows) -> Rows:
    """One row that no objective counts, for a pass in which this rank has nothing to do."""
    row = {item.name: getattr(batch, item.name).new_zeros(1, 1) for item in fields(batch)}
    flat = {item.name for item in fields(batch) if not item.metadata}
    return type(batch)(**{name: v.flatten() if name in flat else v for name, v in row.items()})


def blocks_of(names: list[str], kind: str) -> list[int]:
    """The number of the block that each LoRA factor belongs to, counted in order of appearance.

    names: of the factors' parameters, `...layers.3.self_attn.q_proj.lora_A.default.weight`.
    kind: whole, layer (the path up to its first number) or module (up to the factor).
    """
    ends = {"whole": r"^", "layer": r"^.*?\.\d+(?=\.)", "module": r"^.*(?=\.lora_)"}
    found = [re.match(ends[kind], name) for name in names]
    keys = [match[0] if match else name for match, name in zip(found, names, strict=True)]
    order = list(dict.fromkeys(keys))
    return [order.index(key) for key in keys]


class Learner:
    """Owns the policy's forward passes in training and the engine's steps.

    store: `device`, `host` or `recompute`.
    means, timer: where metrics of the forward passes and phase times are added up.
    """

    def __init__(
        self,
        config: Config,
        engine: CapoEngine,
        store: str,
        means: Means,
        timer: PhaseTimer,
    ):
        self.config, self.engine, self.store = config, engine, store
        self.means, self.timer = means, timer
        self.policy = engine.module
        self.per_sample = (
            PerSampleGradients(self.policy) if config.uses_per_sample_gradients else None
        )
        self.blocks = blocks_of(engine.names, config.program.blocks)  # of each factor
        self.solver = make_solver(config)
        self.objective = make_objective(config.objective)
        self.sketch_of = sketches(config.gradients, engine.shapes)  # by its seed
        self.sources: list[str] = []  # of several data sets, that of each prompt of the step
        # What the first update with each response of the step made of it, by the response's number.
        self.heard: dict[int, dict[str, float | None]] = {}

    @torch.no_grad()
    def prepare(self, rollout: Rollout, advantages: Tensor, numbers: Tensor) -> Batch:
        """Attach advantages (n,), the responses' numbers in the step (n,) and the log-probabilities
        that stay fixed over the updates.

        Raises `PeerError` on all ranks if any fails.
        """
        behaviour = reference = torch.zeros_like(rollout.log_probs)
        with self._passes("log-probabilities"):
            if not self.config.on_policy:
                behaviour = self._fixed_log_probs(rollout)
            if self.config.objective.kl_weight:
                with reference_policy(self.policy):
                    reference = self._fixed_log_probs(rollout)
        return Batch(
            **vars(rollout),
            advantages=advantages,
            behaviour=behaviour,
            reference=reference,
            weights=torch.zeros_like(advantages),
            numbers=numbers,
        )

    def update(self, batch: Batch, number: int) -> None:
        """One optimizer step on a mini-batch, of which this rank holds `batch` (maybe empty).

        number: of the optimizer step in the run; with the seed it decides what is random in it.
        Raises `PeerError` on all ranks if any fails.
        """
        mask = self._counted_tokens(batch)
        samples, tokens = comm.sum_over_ranks(len(batch), float(mask.sum()))
        # Without KL, a sample of zero advantage has no gradient: it counts in N and costs nothing.
        active = mask.any(1) & ((batch.advantages != 0) | (self.config.objective.kl_weight > 0))
        rows = active.nonzero().squeeze(1)
        # In order of length, for micro-batches of little padding.
        batch = batch.take(rows[batch.lengths[rows].argsort(stable=True)])
        batch.weights = token_weights(
            self._counted_tokens(batch).sum(1).float(),
            self.config.objective.loss_aggregation,
            int(samples),
            tokens,
            self.config.rollout.max_new_tokens,
        )
        self.means.add("loss/learning_rate", self.engine.learning_rate)
        gradient = self._gradient(batch, int(samples), number)
        with self.timer("optimizer"):
            self.means.add("loss/grad_norm", self.engine.apply(gradient))
        self.means.add("comm/optimizer_bytes", self.engine.bytes_sent)
        for kind, count in comm.take_bytes_sent().items():
            self.means.add(f"comm/{kind}_bytes", count)

    # ---------------------------------------------------------------- gradients

    def _gradient(self, batch: Batch, samples: int, number: int) -> list[Tensor]:
        """This rank's part of the aggregated gradient; `samples` is N of g_0's mean."""
        if self.per_sample is None:
            with self.timer("backward"), self._passes("backward"):
                return self._weighted_gradient(batch, torch.ones_like(batch.weights) / samples)
        with self.timer("backward"), self._passes("per-sample gradients"):
            store = self._new_store(len(batch), number)
            live = self._fill(store, batch)
        mine = (batch.advantages * live).cpu().numpy(), batch.numbers.cpu().numpy()
        shares = comm.gather(mine)
        counts = [len(signs) for signs, _ in shares]
        if not any(counts):  # no sample of any rank has a gradient: g~ = g_0 = 0
            return self.engine.zeros()
        with self.timer("gram"), comm.collective("Gram matrix"):
            grams = gram_matrices(store.matrices(), counts, *self._blocks_of_matrices())
        with self.timer("solve"):
            solved = comm.on_main("solve", lambda: self._solve(grams, shares, samples, number))
        for name, value in solved.metrics.items():
            self.means.add(name, value)
        numbers = np.concatenate([numbers for _, numbers in shares])
        self.heard = solved.heard(numbers, samples) | self.heard
        first = sum(counts[: comm.rank()])
        mine = slice(first, first + len(batch))
        store.discard(torch.as_tensor(solved.vanilla[mine] == 0))
        return self._rebuild(solved, mine, store, batch)

    def _rebuild(
        self, solved: Solved, mine: slice, store: GradientStore | SketchStore, batch: Batch
    ) -> list[Tensor]:
        """This rank's part of g~. mine: its samples among all."""

        def combine(coefficients: np.ndarray) -> list[Tensor]:
            """This rank's part of sum_i c_i g_i, from all samples' coefficients (blocks, N)."""
            local = torch.tensor(coefficients[:, mine]).to(batch.weights)
            if not isinstance(store, SketchStore):
                return store.combine(local[self.blocks])
            if np.ptp(coefficients) == 0:
                return torch._foreach_mul(store.total, float(coefficients[0, 0]))
            return self._weighted_gradient(batch, local[0])

        result = solved.results[0]
        with self.timer("reconstruct"), self._passes("reconstruction"):
            if not (result.on_boundary and self.config.gradients.sketch != "none"):
                return combine(solved.coefficients)
            direction, mean = combine(result.xi[None]), combine(result.average[None])
        with self.timer("reconstruct"), comm.collective("norms"):
            norms = norms_of_sums(mean, direction)
            scale = result.direction_scale(*norms)
        for name, sketched, norm in zip(SKETCHED_NORMS, solved.sketched_norms, norms, strict=True):
            self.means.add(name, sketched)
            if norm > 0:
                self.means.add(f"{name}_ratio", sketched / norm)
        if not result.base.any():  # the norm ball is centred on 0
            return torch._foreach_mul(direction, scale)
        return torch._foreach_add(mean, direction, alpha=scale)

    def _blocks_of_matrices(self) -> tuple[list[int], int]:
        """The block of each matrix that a store gives, and the number of blocks."""
        if self.config.gradients.sketch != "none":
            return [0], 1
        return self.blocks, max(self.blocks) + 1

    def _new_store(self, samples: int, number: int) -> GradientStore | SketchStore:
        settings, shapes = self.config.gradients, self.engine.shapes
        # New signs for every update: the error of one sketch is shared by all its samples.
        sketch = self.sketch_of and self.sketch_of(self._update_seed(number))
        if self.store == "recompute":
            return SketchStore(shapes, samples, comm.device(), sketch)
        make = HostStore if self.store == "host" else GradientStore
        return make(shapes, samples, comm.device(), getattr(torch, settings.dtype), sketch)

    def _fill(self, store: GradientStore | SketchStore, batch: Batch) -> Tensor:
        """Per-sample gradients into the store; (n,) of bool: the clip leaves some token alone.

        Where it leaves none, what remains of a sample's gradient is the KL term's: it counts in
        g_0, but the program must neither align with it nor keep away from it.
        """
        live = torch.zeros(len(batch), dtype=torch.bool, device=batch.weights.device)
        for rows, part in self._micro_batches(batch):

            def objectives(rows: Tensor = rows, part: Batch = part) -> Tensor:
                values, unclipped = self._objectives(part)
                live[rows] = unclipped[: len(rows)]
                return values

            if len(rows):
                self.per_sample.backward(objectives, store, first=int(rows[0]))
            else:
                self.per_sample.backward(objectives, store=None)
            self.engine.end_of_pass()
        return live

    def _weighted_gradient(self, batch: Batch, coefficients: Tensor) -> list[Tensor]:
        """This rank's part of sum_i c_i g_i, by an ordinary backward pass. coefficients: (n,)."""
        total = self.engine.zeros()
        weighted = replace(batch, weights=batch.weights * coefficients)
        # After per-sample gradients this is a second pass, whose metrics are known.
        counting = self.per_sample is None
        # Without the samples of coefficient 0, whose gradients may be NaN.
        for _, part in self._micro_batches(weighted.take(coefficients.nonzero().squeeze(1))):
            values, _ = self._objectives(part, counting)
            parts = torch.autograd.grad(values.sum(), self.engine.parameters)
            torch._foreach_add_(total, parts)
            self.engine.end_of_pass()
        return total

    def _solve(
        self,
        grams: np.ndarray,
        shares: list[tuple[np.ndarray, np.ndarray]],
        samples: int,
        number: int,
    ) -> Solved:
        """The aggregation and its measures. shares: advantages and numbers, rank by rank."""
        advantages, numbers = map(np.concatenate, zip(*shares, strict=True))
        prompts = numbers // self.config.rollout.group_size
        sources = np.array(self.sources)[prompts] if self.sources else None
        given = Samples(grams, np.sign(advantages), prompts, samples, sources)
        random = generator(self.config.train.seed, Stream.HELDOUT_HALVES, number)
        solved = self.solver.solve(given, random, seed=self._update_seed(number))
        if solved.dropped == len(advantages):
            raise FloatingPointError(
                "every sample's gradient is NaN or Inf; lower optimizer.learning_rate, and go on "
                "from an earlier checkpoint"
            )
        if solved.dropped:
            tqdm.write(
                f"left out {solved.dropped} of {len(advantages)} samples: NaN or Inf in the "
                "gradient"
            )
        for result in solved.results:
            if result.status in ("fallback", "inaccurate"):
                tqdm.write(f"{self.config.aggregator}: {result.status} solution, {result.report}")
        return solved

    def _update_seed(self, number: int) -> int:
        return self.config.train.seed + SEED_STRIDE * number

    # ---------------------------------------------------------------- forward passes

    def _objectives(self, batch: Batch, counting: bool = True) -> tuple[Tensor, Tensor]:
        """Each sample's own objective J_i (B,), differentiable; and whether any of its
        counted tokens has a policy gradient, (B,) of bool. counting: add this pass's metrics."""
        log_probs = self._log_probs(batch)
        on_policy, kl_weight = self.config.on_policy, self.config.objective.kl_weight
        behaviour = log_probs.detach() if on_policy else batch.behaviour
        mask = self._counted_tokens(batch)
        mismatch = (behaviour - batch.log_probs) * batch.completion_mask
        rollout = self.config.rollout
        terms = token_objective(
            self.objective,
            Tokens(log_probs, behaviour, batch.advantages, mask),
            batch.reference if kl_weight else None,
            self.config.objective,
            importance_weights(mismatch, rollout.importance_correction, rollout.importance_cap),
        )
        if counting:
            self._count_mismatch(mismatch, mask)
            self.means.add("loss/clip_fraction", terms.clipped[mask])
            self.means.add("loss/ratio", terms.ratio[mask])
        if counting and kl_weight:
            self.means.add("loss/kl", terms.kl[mask])
        return (terms.value * mask).sum(1) * batch.weights, (mask & ~terms.silent).any(1)

    def _count_mismatch(self, log_ratio: Tensor, mask: Tensor) -> None:
        """Add the metrics of trainer against sampler. log_ratio: (B, T); mask: counted tokens."""
        difference = log_ratio[mask].abs()
        self.means.add("rollout/log_prob_difference", difference)
        self.means.add_max("rollout/log_prob_difference_max", difference)
        self.means.add("rollout/importance_ratio", log_ratio[mask].clamp(max=MAX_LOG_RATIO).exp())
        ratios = log_ratio[mask.any(1)].double().sum(1).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
        self.means.add("rollout/sequence_ratio", ratios)
        self.means.add(SEQUENCE_RATIO_SQUARE, ratios.square())

    def _fixed_log_probs(self, rollout: Rollout) -> Tensor:
        """(n, T) under the current weights, without gradient."""
        result = torch.zeros_like(rollout.log_probs)
        by_length = rollout.lengths.argsort(stable=True)
        for rows, part in self._micro_batches(rollout.take(by_length)):
            values = self._log_probs(part)
            result[by_length[rows], : values.shape[1]] = values[: len(rows)]
        return result

    def _log_probs(self, batch: Rollout) -> Tensor:
        return token_log_probs(
            self.policy,
            batch.input_ids(),
            batch.attention_mask(),
            batch.completion_mask,
            self.config.rollout.temperature,
        )

    def _counted_tokens(self, batch: Rollout) -> Tensor:
        """(n, T) of bool: the tokens that the objective counts."""
        if self.config.objective.mask_truncated:
            return batch.completion_mask & ~batch.truncated[:, None]
        return batch.completion_mask

    def _passes(self, phase: str) -> AbstractContextManager:
        """Around forward and backward passes: how their failures reach the other ranks."""
        return comm.phase(phase, self.engine.lockstep)

    def _micro_batches(self, batch: Rows) -> Iterator[tuple[Tensor, Rows]]:
        """The batch part by part, each with its rows in the batch.

        Where passes are collective, every rank gets as many as the busiest; those it has no
        samples for are `idle`, and theirs are no rows.
        """
        rows = torch.arange(len(batch), device=comm.device())
        parts = rows.split(self.config.train.micro_batch_size) if len(rows) else ()
        passes = comm.max_over_ranks(len(parts)) if self.engine.lockstep else len(parts)
        for part in parts:
            yield part, batch.take(part)
        for _ in range(passes - len(parts)):
            yield rows[:0], idle(batch)
