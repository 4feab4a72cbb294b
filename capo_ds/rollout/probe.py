"""Trust but verify: does the sampler have the trainer's weights?"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, cycle, islice

import torch
from peft import PeftModel
from torch import Tensor

from capo_ds.config import Config
from capo_ds.log_probs import largest_logit, log_prob_bound, token_log_probs
from capo_ds.models import reference_policy
from capo_ds.rollout.base import Draw, Sampler, SamplesEach, asked_of
from capo_ds.rollout.engine import PROBE_LENGTHS, PROBE_TOKENS
from capo_ds.rollout.rollout import Rollout

SAME = 1e-4  # nats a token; sequences closer than this come from the same weights


class SamplerMismatch(RuntimeError):
    """The sampler's probabilities are not the trainer's; the text says what is wrong."""


class Probe:
    """A few sequences that the sampler samples after each sync, and the trainer checks.

    The prompts are the same every time, so that a prefix cache would know them again. They are
    pieces of real ones, ending anywhere: what follows is uncertain, and so depends on the weights.

    prompts: of the task, as token ids. context: the sampler's.
    """

    def __init__(
        self,
        sampler: Sampler,
        policy: PeftModel,
        prompts: list[list[int]],
        context: int,
        config: Config,
    ):
        self.sampler, self.policy = sampler, policy
        self.temperature = config.rollout.temperature
        self.bound = config.rollout.probe_bound or 0.0  # 0: to be found from the first rollout
        self.dtype = config.model.dtype
        text = list(islice(cycle(chain.from_iterable(prompts)), max(PROBE_LENGTHS)))
        self.prompts = [text[: min(length, context - PROBE_TOKENS)] for length in PROBE_LENGTHS]
        self.draws = [Draw(config.train.seed, 0, number) for number in range(len(self.prompts))]
        self._last: dict[str, Rollout] = {}  # by server, if there are several

    def check(self) -> Tensor:
        """`ask`, and wait."""
        return self.ask()()

    def ask(self) -> Callable[[], Tensor]:
        """The sequences are asked for; what is returned waits for them, and returns the absolute
        differences of all tokens' log-probabilities, in nats.

        Raises:
            SamplerMismatch: if their mean over any sequence exceeds the bound (from the latter).
        """
        asked = self._ask()

        def differences() -> Tensor:
            rollouts = asked()
            found = [self._check(where, rollout) for where, rollout in rollouts.items()]
            self._last = rollouts
            return torch.cat(found)

        return differences

    def _ask(self) -> Callable[[], dict[str, Rollout]]:
        """For what each server answers, or under no name what the sampler does."""
        sampler, arguments = self.sampler, (self.prompts, self.draws)
        if isinstance(sampler, SamplesEach):
            return lambda: sampler.sample_each(*arguments, self.temperature, PROBE_TOKENS)
        asked = asked_of(sampler, *arguments, 1, self.temperature, PROBE_TOKENS)
        return lambda: {"": asked().rollout}

    def _check(self, where: str, rollout: Rollout) -> Tensor:
        if not self.bound:
            largest = largest_logit(self.policy, rollout.input_ids(), rollout.attention_mask())
            self.bound = log_prob_bound(self.dtype, largest)
        differences = (rollout.log_probs - self._trainers(rollout)).abs()
        of_sequences = differences.sum(1) / rollout.lengths
        if not (of_sequences <= self.bound).all():  # NaN is not
            explained = self._explain(rollout, of_sequences, self._last.get(where))
            raise SamplerMismatch(
                "after the weight sync the sampler's log-probabilities differ from the trainer's "
                f"by up to {of_sequences.max():.4g} nats a token (rollout.probe_bound = "
                f"{self.bound:g}{where and f', {where}'}): {explained}"
            )
        return differences[rollout.completion_mask]

    @torch.no_grad()
    def _trainers(self, rollout: Rollout) -> Tensor:
        return token_log_probs(
            self.policy,
            rollout.input_ids(),
            rollout.attention_mask(),
            rollout.completion_mask,
            self.temperature,
        )

    def _explain(self, rollout: Rollout, differences: Tensor, last: Rollout | None) -> str:
        """What is wrong, from which sequences differ (differences: (n,)) and what they equal."""
        if not differences.isfinite().all():
            return "there are values that are not finite, so weights are corrupted"
        if last is not None and _same(rollout, last):
            return "it answers as before the sync: it still has the old weights"
        with reference_policy(self.policy):
            of_base = (rollout.log_probs - self._trainers(rollout)).abs().sum(1) / rollout.lengths
        if (of_base <= self.bound).all():
            return "it answers as the base model: it runs without the adapter"
        lengths = rollout.prompt_mask.sum(1)
        wrong = differences > self.bound
        if not wrong.all() and lengths[wrong].min() > lengths[~wrong].max():
            return (
                f"prompts of {int(lengths[~wrong].max())} tokens agree and longer ones do not, so "
                "its prefix cache holds values of the old weights"
            )
        return (
            "its weights are neither the new nor the old ones; they are corrupted, or of another "
            "base model (compare model.path and model.dtype with the sampler's)"
        )


def _same(one: Rollout, other: Rollout) -> bool:
    return torch.equal(one.completion_ids, other.completion_ids) and torch.allclose(
        one.log_probs, other.log_probs, rtol=0, atol=SAME
    )
