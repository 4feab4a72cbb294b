"""Greedy accuracy on a set of problems, shared out over the ranks."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from capo_ds.distributed import comm
from capo_ds.rollout.base import Rollout, Sampler
from capo_ds.tasks import Problem, Verdict, score


@dataclass(frozen=True)
class Evaluation:
    """Greedy completions of all problems, in their order, and what became of them."""

    completions: list[str]
    verdicts: list[Verdict]

    @property
    def accuracy(self) -> float:
        """Share of problems answered correctly in the required format."""
        return sum(verdict.correct for verdict in self.verdicts) / len(self.verdicts)

    @property
    def formatted(self) -> float:
        """Share of completions in the required format."""
        return sum(verdict.formatted for verdict in self.verdicts) / len(self.verdicts)


def evaluate(
    sampler: Sampler, tokenizer: PreTrainedTokenizerBase, problems: list[Problem]
) -> Evaluation:
    """Decode every problem greedily and judge it; all ranks take part and get the same result."""
    with comm.together("evaluation"):
        mine = comm.shard(problems)
        texts = decode(tokenizer, sampler.greedy(encode(tokenizer, mine)))
        verdicts = score(texts, mine)
    return Evaluation(comm.unshard(texts), comm.unshard(verdicts))


def encode(tokenizer: PreTrainedTokenizerBase, problems: list[Problem]) -> list[list[int]]:
    """Prompts as token ids."""
    return [tokenizer.encode(problem.prompt) for problem in problems]


def decode(tokenizer: PreTrainedTokenizerBase, rollout: Rollout) -> list[str]:
    """Completions as text, without padding and special tokens."""
    rows = zip(rollout.completion_ids, rollout.completion_mask, strict=True)
    return [tokenizer.decode(ids[mask], skip_special_tokens=True) for ids, mask in rows]
