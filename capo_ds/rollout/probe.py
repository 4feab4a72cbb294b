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

    prompts: of the task, as token ids. context: the sampler's. largest: of a number of each rank,
    where ranks take part in each other's passes (ZeRO 3), so that all make equally many.
    """

    def __init__(
        self,
        sampler: Sampler,
        policy: PeftModel,
        prompts: list[list[int]],
        context: int,
        config: Config,
        largest: Callable[[int], int] | None = None,
    ):
        self.sampler, self.policy, self.largest = sampler, policy, largest
        self.temperature = config.rollout.temperature
        self.bound = config.rollout.probe_bound or 0.0  # 0: to be found from the first rollout
        self.dtype = config.model.dtype
        text = list(islice(cycle(chain.from_iterable(prompts)), max(PROBE_LENGTHS)))
        self.prompts = [text[: min(length, context - PROBE_TOKENS)] for length in PROBE_LENGTHS]
        self.draws = [Draw(config.train.seed, 0, number) for number in range(len(self.prompts))]
        self._last: dict[str, Rollout] = {}  # by server, if there are several

    def check(self) -> Tensor:
        """`ask`, wait, and `compare`."""
        return self.compare(self.ask()())

    def ask(self) -> Callable[[], dict[str, Rollout]]:
        """The sequences are asked for; what is returned waits for them: what each server answers,
        or under no name what the sampler does."""
        sampler, arguments = self.sampler, (self.prompts, self.draws)
        if isinstance(sampler, SamplesEach):
            return lambda: sampler.sample_each(*arguments, self.temperature, PROBE_TOKENS)
        asked = asked_of(sampler, *arguments, 1, self.temperature, PROBE_TOKENS)
        return lambda: {"": asked().rollout}

    def compare(self, answers: dict[str, Rollout]) -> Tensor:
        """The absolute differences of all tokens' log-probabilities, in nats.

        Raises:
            SamplerMismatch: if their mean over any sequence exceeds the bound.
        """
        rollouts = list(answers.values())
        if not self.bound:
            ids, mask = rollouts[0].input_ids(), rollouts[0].attention_mask()
            self.bound = log_prob_bound(self.dtype, largest_logit(self.policy, ids, mask))
        differences = [self._differences(rollout) for rollout in rollouts]
        for _ in range(self._of_ranks(len(rollouts)) - len(rollouts)):
            self._differences(rollouts[0])
        wrong = -1  # the first of them
        for number, (values, rollout) in enumerate(zip(differences, rollouts, strict=True)):
            if wrong < 0 and not (_means(values, rollout) <= self.bound).all():  # NaN is not
                wrong = number
        if self._of_ranks(wrong) >= 0:  # here, or elsewhere, where this rank has part in the passes
            rollout = rollouts[wrong]
            with reference_policy(self.policy):
                of_base = _means(self._differences(rollout), rollout)
        if wrong >= 0:
            where, found = list(answers)[wrong], _means(differences[wrong], rollout)
            explained = self._explain(rollout, found, of_base, self._last.get(where))
            raise SamplerMismatch(
                "after the weight sync the sampler's log-probabilities differ from the trainer's "
                f"by up to {found.max():.4g} nats a token (rollout.probe_bound = "
                f"{self.bound:g}{where and f', {where}'}): {explained}"
            )
        self._last = answers
        values = zip(differences, rollouts, strict=True)
        return torch.cat([value[rollout.completion_mask] for value, rollout in values])

    def _of_ranks(self, number: int) -> int:
        return self.largest(number) if self.largest else number

    @torch.no_grad()
    def _differences(self, rollout: Rollout) -> Tensor:
        """Of the sampler's log-probabilities and the policy's. (B, T)"""
        values = token_log_probs(
            self.policy,
            rollout.input_ids(),
            rollout.attention_mask(),
            rollout.completion_mask,
            self.temperature,
        )
        return (rollout.log_probs - values).abs()

    def _explain(
        self, rollout: Rollout, differences: Tensor, of_base: Tensor, last: Rollout | None
    ) -> str:
        """What is wrong, from which sequences differ (differences: (n,)) and what they equal.

        of_base: their differences from the reference.
        """
        if not differences.isfinite().all():
            return "there are values that are not finite, so weights are corrupted"
        if last is not None and _same(rollout, last):
            return "it answers as before the sync: it still has the old weights"
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


def _means(differences: Tensor, rollout: Rollout) -> Tensor:
    """Over the tokens of each sequence. (B,)"""
    return differences.sum(1) / rollout.lengths


def _same(one: Rollout, other: Rollout) -> bool:
    return torch.equal(one.completion_ids, other.completion_ids) and torch.allclose(
        one.log_probs, other.log_probs, rtol=0, atol=SAME
    )
