"""The rule's reward with one verdict in ten flipped: `flipped` of reward.functions."""

from __future__ import annotations

import hashlib
from collections import Counter

from capo_ds.tasks.rewards import (
    REWARD_CORRECT,
    REWARD_INCORRECT,
    REWARD_UNFORMATTED,
    final_answer,
)

SHARE = 0.1


def flipped(
    prompts: list[str], completions: list[str], references: list[str], **columns: list
) -> list[float]:
    """Rewards of integer answers; a flipped right one is paid as wrong, any other as right.

    Which ones are flipped follows from the prompt, the response's number among the prompt's and
    its text: the same on any number of ranks, and after a resume.
    """
    seen: Counter[str] = Counter()
    rewards = []
    for prompt, completion, reference in zip(prompts, completions, references, strict=True):
        reward = _rule(completion, reference)
        if _draw(f"{prompt}\0{seen[prompt]}\0{completion}") < SHARE:
            reward = REWARD_INCORRECT if reward == REWARD_CORRECT else REWARD_CORRECT
        seen[prompt] += 1
        rewards.append(reward)
    return rewards


def _rule(completion: str, reference: str) -> float:
    answer = final_answer(completion)
    if answer is None:
        return REWARD_UNFORMATTED
    return REWARD_CORRECT if answer.strip() == reference else REWARD_INCORRECT


def _draw(text: str) -> float:
    """A number in [0, 1) that follows from the text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) / 2**64
