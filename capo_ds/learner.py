"""From a batch of scored responses to one optimizer step (DESIGN: per-sample gradients, Gram
matrix, solve, reconstruct, step). Every method is called on all ranks together."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from capo_ds.aggregation import GramProblem, aggregate
from capo_ds.aggregation.diagnostics import diagnose
from capo_ds.config import Config
from capo_ds.distributed import comm
from capo_ds.distributed.engine import CapoEngine
from capo_ds.distributed.gram import bytes_sent, gram_matrix
from capo_ds.gradients.per_sample import GradientStore, PerSampleGradients
from capo_ds.models import reference_policy, token_log_probs
from capo_ds.objective import token_objective, token_weights
from capo_ds.rollout.base import TOKEN, Rollout
from capo_ds.telemetry.metrics import Means, PhaseTimer


@dataclass
class Batch(Rollout):
    """A rollout with what the objective needs of it."""

    advantages: Tensor  # (n,)
    behaviour: Tensor = field(metadata=TOKEN)  # log-probabilities under the sampling policy
    reference: Tensor = field(metadata=TOKEN)  # and under the reference


class Learner:
    """Owns the policy's forward passes in training and the engine's steps.

    means, timer: where metrics of the forward passes and phase times are added up.
    """

    def __init__(self, config: Config, engine: CapoEngine, means: Means, timer: PhaseTimer):
        self.config, self.engine, self.means, self.timer = config, engine, means, timer
        self.policy = engine.module
        self.per_sample = (
            PerSampleGradients(self.policy) if config.uses_per_sample_gradients else None
        )

    @torch.no_grad()
    def prepare(self, rollout: Rollout, advantages: Tensor) -> Batch:
        """Attach advantages (n,) and the log-probabilities that stay fixed over the updates."""
        behaviour = reference = torch.zeros_like(rollout.log_probs)
        if not self.config.on_policy:
            behaviour = self._fixed_log_probs(rollout)
        if self.config.objective.kl_weight:
            with reference_policy(self.policy):
                reference = self._fixed_log_probs(rollout)
        return Batch(
            **vars(rollout), advantages=advantages, behaviour=behaviour, reference=reference
        )

    def update(self, batch: Batch) -> dict[str, float]:
        """One optimizer step on a mini-batch, of which this rank holds `batch` (maybe empty).

        Returns what aggregator and optimizer report. Raises `PeerError` on all ranks if any fails.
        """
        mask = self._counted_tokens(batch)
        samples, tokens = comm.sum_over_ranks(len(batch), float(mask.sum()))
        # Without KL, a sample of zero advantage has no gradient: it counts in N and costs nothing.
        active = mask.any(1) & ((batch.advantages != 0) | (self.config.objective.kl_weight > 0))
        batch = batch.take(active.nonzero().squeeze(1))
        batch = batch.take(batch.lengths.argsort(stable=True))  # micro-batches of like lengths
        weights = token_weights(
            self._counted_tokens(batch).sum(1).float(),
            self.config.objective.loss_aggregation,
            int(samples),
            tokens,
            self.config.rollout.max_new_tokens,
        )
        learning_rate = self.engine.learning_rate
        gradient, report = self._gradient(batch, weights, int(samples))
        with self.timer("optimizer"):
            norm = self.engine.apply(gradient)
        return report | {"loss/grad_norm": norm, "loss/learning_rate": learning_rate}

    # ---------------------------------------------------------------- gradients

    def _gradient(
        self, batch: Batch, weights: Tensor, samples: int
    ) -> tuple[list[Tensor], dict[str, float]]:
        """This rank's part of the aggregated gradient, and the aggregator's report."""
        if self.per_sample is None:
            with self.timer("backward"), comm.together("backward"):
                return self._vanilla_gradient(batch, weights, samples), {}
        with self.timer("backward"), comm.together("per-sample gradients"):
            store = self._per_sample_gradients(batch, weights)
        return self._aggregate(store, batch.advantages, samples)

    def _per_sample_gradients(self, batch: Batch, weights: Tensor) -> GradientStore:
        store = self.per_sample.store(len(batch))
        for rows in self._micro_batches(len(batch)):
            part, weight = batch.take(rows), weights[rows]
            self.per_sample.backward(
                lambda part=part, weight=weight: self._objectives(part, weight),
                store,
                first=int(rows[0]),
            )
        return store

    def _vanilla_gradient(self, batch: Batch, weights: Tensor, samples: int) -> list[Tensor]:
        """This rank's part of g_0, by an ordinary backward pass."""
        total = [torch.zeros_like(parameter) for parameter in self.engine.parameters]
        for rows in self._micro_batches(len(batch)):
            objective = self._objectives(batch.take(rows), weights[rows]).sum() / samples
            parts = torch.autograd.grad(objective, self.engine.parameters)
            torch._foreach_add_(total, parts)
        return total

    def _aggregate(
        self, store: GradientStore, advantages: Tensor, samples: int
    ) -> tuple[list[Tensor], dict[str, float]]:
        """This rank's part of g~ = sum_i c_i g_i; `samples` is the N of g_0's mean."""
        shares = comm.gather(advantages.cpu().numpy())
        counts = [len(share) for share in shares]
        if not sum(counts):  # no sample of any rank has a gradient: g~ = g_0 = 0
            return store.combine(advantages), {}
        with self.timer("gram"):
            gram = gram_matrix(store.matrices(), counts)
        with self.timer("solve"):
            signs = np.sign(np.concatenate(shares))
            coefficients, report = comm.on_main("solve", lambda: self._solve(gram, signs, samples))
        with self.timer("reconstruct"):
            first = sum(counts[: comm.rank()])
            mine = torch.as_tensor(coefficients[first : first + len(advantages)])
            mine = mine.to(advantages.device)
            store.discard(mine == 0)
            gradient = store.combine(mine)
        return gradient, report | {"comm/gram_bytes": bytes_sent(store.matrices(), counts)}

    def _solve(
        self, gram: np.ndarray, signs: np.ndarray, samples: int
    ) -> tuple[np.ndarray, dict[str, float]]:
        """Coefficients c (N,) and metrics, from the Gram matrix and the advantages' signs (N,)."""
        problem = GramProblem(
            gram,
            positive=signs > 0,
            negative=signs < 0,
            vanilla=np.full(len(signs), 1 / samples),
        )
        result = aggregate(self.config.aggregator, problem, **self._options(gram))
        group = self.config.aggregator.replace(":", "_")
        report = {f"{group}/{key}": value for key, value in result.report.items()}
        return result.coefficients, report | diagnose(problem, result.coefficients, result.xi)

    def _options(self, gram: np.ndarray) -> dict[str, Any]:
        """Settings of the aggregator."""
        match self.config.aggregator:
            case "capo" | "cagrad" as name:
                return getattr(self.config, name).model_dump()
            case "pcgrad":  # projects in a random order, which must not be the same at every step
                return {"seed": zlib.crc32(gram.tobytes())}
        return {}

    # ---------------------------------------------------------------- forward passes

    def _objectives(self, batch: Batch, weights: Tensor) -> Tensor:
        """Each sample's own objective J_i (B,), differentiable."""
        log_probs = self._log_probs(batch)
        behaviour = log_probs.detach() if self.config.on_policy else batch.behaviour
        reference = batch.reference if self.config.objective.kl_weight else None
        terms = token_objective(
            log_probs, behaviour, reference, batch.advantages, self.config.objective
        )
        mask = self._counted_tokens(batch)
        ours = log_probs.detach()[mask]
        self.means.add("loss/kl", terms.kl[mask])
        self.means.add("loss/clip_fraction", terms.clipped[mask])
        self.means.add("loss/ratio", torch.exp(ours - behaviour[mask]))
        self.means.add("rollout/log_prob_difference", (ours - batch.log_probs[mask]).abs())
        return (terms.value * mask).sum(1) * weights

    def _fixed_log_probs(self, rollout: Rollout) -> Tensor:
        """(n, T) under the current weights, without gradient."""
        result = torch.zeros_like(rollout.log_probs)
        by_length = rollout.lengths.argsort(stable=True)
        for rows in self._micro_batches(len(rollout)):
            values = self._log_probs(rollout.take(by_length[rows]))
            result[by_length[rows], : values.shape[1]] = values
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

    def _micro_batches(self, samples: int) -> list[Tensor]:
        size = self.config.train.micro_batch_size
        rows = torch.arange(samples, device=comm.device())
        return [part for part in rows.split(size) if len(part)]
