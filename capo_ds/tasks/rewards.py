r"""The rule-based reward.

A completion has the right format when
1. the text `\boxed` occurs in it exactly once;
2. it opens a box `\boxed{...}` with balanced braces (escaped ones are text) and a content that
   is not blank; no space between the word and its brace;
3. after the box stand only whitespace, full stops and closers of a formula (`$`, `\)`, `\]`).
Any reasoning may stand before the box. So a completion that boxes two answers, goes on talking
after its answer, or is cut off inside the box has the wrong format, whatever its number is.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from capo_ds.tasks.answers import BOX, find_boxes, same_answer
from capo_ds.tasks.base import Problem

REWARD_CORRECT = 1.0  # right format, right answer
REWARD_INCORRECT = -0.5  # right format, wrong answer
REWARD_UNFORMATTED = -1.0  # wrong format

_ENDING = re.compile(r"(?:[\s.$]|\\\)|\\\])*")


@dataclass(frozen=True)
class Verdict:
    """Judgement of one completion; `correct` implies `formatted`."""

    reward: float
    formatted: bool
    correct: bool


def final_answer(completion: str) -> str | None:
    """The content of the box if the completion has the required format, else None."""
    if completion.count(BOX) != 1:
        return None
    boxes = find_boxes(completion)
    if not boxes or not boxes[0].content.strip():
        return None
    return boxes[0].content if _ENDING.fullmatch(completion, boxes[0].end) else None


def judge(completion: str, problem: Problem) -> Verdict:
    """Apply the rule to one completion, given as text without special tokens."""
    answer = final_answer(completion)
    if answer is None:
        return Verdict(REWARD_UNFORMATTED, formatted=False, correct=False)
    if same_answer(answer, problem.answer):
        return Verdict(REWARD_CORRECT, formatted=True, correct=True)
    return Verdict(REWARD_INCORRECT, formatted=True, correct=False)


def score(completions: Sequence[str], problems: Sequence[Problem]) -> list[Verdict]:
    """Judge completions[i] against problems[i].

    Raises:
        ValueError: the two sequences differ in length.
    """
    if len(completions) != len(problems):
        raise ValueError(f"{len(completions)} completions for {len(problems)} problems")
    return [judge(*pair) for pair in zip(completions, problems, strict=True)]
