r"""Demonstrations for the supervised warm-up: worked solutions, told in one of several styles.

Real corpora answer the same kind of question in many ways. A model warmed up on a mixture of
them can do the task but often answers in a style that does not work well or does not meet the
format: that is what RL finds out. The styles:
    worked  the reference solution: its steps, then the boxed answer
    direct  the boxed answer alone, without a step (`\boxed{16}`)
    plain   the steps, then "The answer is 16." without a box: right, but of the wrong format
"""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from capo_ds.tasks.answers import find_boxes
from capo_ds.tasks.base import Problem


def _worked(problem: Problem) -> str:
    return problem.solution or ""  # `demonstrate` takes those that have one


def _direct(problem: Problem) -> str:
    return rf"\boxed{{{problem.answer}}}"


def _plain(problem: Problem) -> str:
    solution = _worked(problem)
    box = find_boxes(solution)[-1]
    steps = solution[: box.start]
    return f"{steps}The answer is {box.content}."


STYLES: dict[str, Callable[[Problem], str]] = {
    "worked": _worked,
    "direct": _direct,
    "plain": _plain,
}


def demonstrate(
    problems: Sequence[Problem], shares: Mapping[Any, float], seed: int
) -> list[tuple[Problem, str]]:
    """Each problem that has a solution, with a completion in a style drawn by its share.

    Args:
        shares: style -> share; the shares are normalised to sum 1.

    Raises:
        ValueError: unknown style, a negative share, or no positive share.
    """
    if unknown := sorted(set(shares) - set(STYLES)):
        raise ValueError(f"unknown demonstration styles {unknown}: choose among {sorted(STYLES)}")
    if min(shares.values(), default=0) < 0 or sum(shares.values()) <= 0:
        raise ValueError(f"shares of demonstration styles must be >= 0 and not all 0: {shares}")
    solved = [problem for problem in problems if problem.solution is not None]
    drawn = random.Random(seed).choices(list(shares), list(shares.values()), k=len(solved))
    return [(problem, STYLES[style](problem)) for problem, style in zip(solved, drawn, strict=True)]
