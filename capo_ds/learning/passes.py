"""The policy's passes in training: log-probabilities, samples' objectives, weighted gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from capo_ds.config import Config
from capo_ds.distributed import comm
from capo_ds.distributed.engine import CapoEngine
from capo_ds.learning.batch import WeightedBatch, idle
from capo_ds.learning.micro_batches import micro_batches
from capo_ds.models import token_log_probs
from capo_ds.objective import (
    ObjectiveTerms,
    importance_weights,
    make_objective,
    sampler_behaviour,
    token_objective,
)
from capo_ds.objectives import MAX_LOG_RATIO, Tokens
from capo_ds.rollout.rollout import Rollout, Rows
from capo_ds.shared_prompts import read_prompts, reads_prompts_once, response_log_probs
from capo_ds.telemetry.metrics import Largest, Mean, Measured

SEQUENCE_RATIO_SQUARE = "rollout/sequence_ratio_square"


@dataclass(frozen=True)
class Objectives:
    """What a forward pass over B samples of T tokens gives.

    values: (B,) each sample's own objective J_i, differentiable.
    terms: of the tokens. counted: (B, T) of bool, the tokens that the objective counts.
    log_ratio: (B, T) of the trainer's probabilities to the sampler's.
    widths: (B,) tokens of prompt and response.
    """

    values: Tensor
    terms: ObjectiveTerms
    counted: Tensor
    log_ratio: Tensor
    widths: Tensor

    @property
    def live(self) -> Tensor:
        """(B,) of bool: some of the sample's counted tokens has a policy gradient."""
        return (self.counted & ~self.terms.silent).any(1)

    def measures(self, with_kl: bool) -> Measured:
        """Metrics of the pass."""
        counted, terms = self.counted, self.terms
        measured = self._mismatch() | {
            "loss/clip_fraction": Mean.over(terms.clipped, counted),
            "loss/ratio": Mean.over(terms.ratio, counted),
            "loss/padding": self._padding(),
        }
        return measured | {"loss/kl": Mean.over(terms.kl, counted)} if with_kl else measured

    def _padding(self) -> Mean:
        """The share of the pass's positions, as many a row as the longest has, without a token."""
        positions = self.widths.max() * len(self.widths)
        return Mean(positions - self.widths.sum(), positions)

    def _mismatch(self) -> Measured:
        """Trainer against sampler."""
        counted, log_ratio = self.counted, self.log_ratio
        difference, rows = log_ratio.abs(), counted.any(1)
        ratios = log_ratio.double().sum(1).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
        return {
            "rollout/log_prob_difference": Mean.over(difference, counted),
            "rollout/log_prob_difference_max": Largest.of(difference, counted),
            "rollout/importance_ratio": Mean.over(
                log_ratio.clamp(max=MAX_LOG_RATIO).exp(), counted
            ),
            "rollout/sequence_ratio": Mean.over(ratios, rows),
            SEQUENCE_RATIO_SQUARE: Mean.over(ratios.square(), rows),
        }


class PolicyPasses:
    """Passes through the policy of an engine, as the settings have them.

    Where passes are collective (ZeRO 3), all ranks call the same methods.
    """

    def __init__(self, config: Config, engine: CapoEngine):
        self.config, self.engine, self.policy = config, engine, engine.module
        self.objective = make_objective(config.objective)

    def around(self, phase: str) -> AbstractContextManager[None]:
        """Around passes: how their failures reach the other ranks."""
        return comm.phase(phase, self.engine.lockstep)

    def objectives(self, batch: WeightedBatch) -> Objectives:
        """One forward pass over all samples of the batch."""
        log_probs = self._log_probs(batch)
        proximal = log_probs.detach() if self.config.on_policy else batch.behaviour
        counted = self.counted_tokens(batch)
        log_ratio = (proximal - batch.log_probs) * batch.completion_mask
        behaviour, importance = self._behaviour(proximal, log_ratio)
        terms = token_objective(
            self.objective,
            Tokens(log_probs, behaviour, batch.advantages, counted),
            batch.reference if self.config.objective.kl_weight else None,
            self.config.objective,
            importance,
        )
        values = (terms.value * counted).sum(1) * batch.weights
        return Objectives(values, terms, counted, log_ratio, batch.widths)

    def _behaviour(self, proximal: Tensor, log_ratio: Tensor) -> tuple[Tensor, Tensor | None]:
        """The log-probabilities that the objective's ratio is to (B, T), and the weights beside it.

        proximal: of the trainer at the start of the step. log_ratio: of it to the sampler.
        """
        correction, cap = self.config.importance_correction, self.config.rollout.importance_cap
        if self.config.ratio_to == "trainer":
            return proximal, importance_weights(log_ratio, correction, cap)
        return sampler_behaviour(proximal, log_ratio, correction, cap), None

    def measures(self, found: Objectives) -> Measured:
        """Metrics of a pass."""
        return found.measures(with_kl=bool(self.config.objective.kl_weight))

    def weighted_gradient(
        self, batch: WeightedBatch, coefficients: Tensor
    ) -> tuple[list[Tensor], list[Measured]]:
        """This rank's part of sum_i c_i g_i by ordinary backward passes, and their metrics.

        coefficients: (n,) c. Samples of coefficient 0, whose gradients may be NaN, take no part.
        """
        total, measures = self.engine.zeros(), []
        weighted = replace(batch, weights=batch.weights * coefficients)
        for _, part in self.micro_batches(weighted.select(coefficients.nonzero().squeeze(1))):
            found = self.objectives(part)
            measures.append(self.measures(found))
            parts = torch.autograd.grad(found.values.sum(), self.engine.parameters)
            torch._foreach_add_(total, parts)  # pyright: ignore[reportPrivateImportUsage]
            self.engine.end_of_pass()
        return total, measures

    @torch.no_grad()
    def fixed_log_probs(self, rollout: Rollout) -> Tensor:
        """(n, T) under the current weights, without gradient."""
        if self._reads_prompts_once and len(rollout):
            return self._by_prompts(rollout)
        result = torch.zeros_like(rollout.log_probs)
        by_width = rollout.widths.argsort(stable=True)
        for rows, part in self.micro_batches(rollout.select(by_width)):
            values = self._log_probs(part)
            mine = by_width[rows.start : rows.stop]
            result[mine, : values.shape[1]] = values[: len(rows)]
        return result

    @property
    def _reads_prompts_once(self) -> bool:
        """At ZeRO 3, where a second pass gathers all weights once more, it would not pay."""
        grouped = self.config.rollout.group_size > 1
        return grouped and not self.engine.lockstep and reads_prompts_once(self.policy)

    def _by_prompts(self, rollout: Rollout) -> Tensor:
        """(n, T) of `fixed_log_probs`, from one reading of each prompt for all its responses."""
        result = torch.zeros_like(rollout.log_probs)
        first, of_prompt = _distinct_prompts(rollout)
        prompt_of, lengths = torch.stack([of_prompt, rollout.lengths]).tolist()
        for some, prompts in self.micro_batches(rollout.select(first)):
            read = read_prompts(self.policy, prompts.prompt_ids, prompts.prompt_mask)
            theirs = [row for row, prompt in enumerate(prompt_of) if prompt in some]
            rows = torch.tensor(sorted(theirs, key=lengths.__getitem__), device=comm.device())
            for part, responses in self.micro_batches(rollout.select(rows)):
                mine = rows[part.start : part.stop]
                values = response_log_probs(
                    self.policy,
                    read,
                    of_prompt[mine] - some.start,
                    responses.completion_ids,
                    responses.completion_mask,
                    self.config.rollout.temperature,
                )
                result[mine, : values.shape[1]] = values
        return result

    def counted_tokens(self, batch: Rollout) -> Tensor:
        """(n, T) of bool: the tokens that the objective counts."""
        if self.config.objective.mask_truncated:
            return batch.completion_mask & ~batch.truncated[:, None]
        return batch.completion_mask

    def micro_batches(self, batch: Rows) -> Iterator[tuple[range, Rows]]:
        """The batch part by part, each with its rows in the batch.

        Where passes are collective, every rank gets as many as the busiest; those it has no
        samples for are `idle`, and theirs are no rows.
        """
        prompts, responses = batch.sizes().tolist()
        widths = [sum(row) for row in zip(prompts, responses, strict=True)]
        parts = micro_batches(widths, self.config.train)
        passes = comm.max_over_ranks(len(parts)) if self.engine.lockstep else len(parts)
        for rows in parts:
            some = slice(rows.start, rows.stop)
            yield rows, batch.cut(rows, max(prompts[some]), max(responses[some]))
        for _ in range(passes - len(parts)):
            yield range(0), idle(batch)

    def _log_probs(self, batch: Rollout) -> Tensor:
        return token_log_probs(
            self.policy,
            batch.input_ids(),
            batch.attention_mask(),
            batch.completion_mask,
            self.config.rollout.temperature,
        )


def _distinct_prompts(rollout: Rollout) -> tuple[Tensor, Tensor]:
    """The first row of each prompt, the shortest prompts first, (Q,); and the number in there of
    every row's, (n,)."""
    mask = rollout.prompt_mask
    known = torch.cat([mask.sum(1, keepdim=True), rollout.prompt_ids * mask], 1)
    _, of_prompt, counts = known.unique(dim=0, return_inverse=True, return_counts=True)
    return of_prompt.argsort(stable=True)[counts.cumsum(0) - counts], of_prompt


def with_sample_size(metrics: dict[str, float]) -> dict[str, float]:
    """Kish's effective sample size, as a share of the responses, in place of the mean square."""
    if SEQUENCE_RATIO_SQUARE in metrics:
        square = metrics.pop(SEQUENCE_RATIO_SQUARE)
        metrics["rollout/effective_sample_size"] = metrics["rollout/sequence_ratio"] ** 2 / square
    return metrics
