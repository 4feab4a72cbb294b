"""Verdicts of the user's own, in place of the rule of the box."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from capo_ds.own_code import PartError, as_it_was
from capo_ds.plugins import make_part, what
from capo_ds.tasks.base import Problem
from capo_ds.tasks.judge import Judge
from capo_ds.tasks.outcome import Comparison
from capo_ds.tasks.rewards import REWARD_CORRECT, REWARD_INCORRECT, REWARD_UNFORMATTED, Verdict

if TYPE_CHECKING:
    from capo_ds.config import DatasetConfig

JUDGE = "judge"  # an argument that a verdict gets if it has it
BOXED = "boxed"
GIVEN = ("completions", "problems", JUDGE)


def verdict_of(key: str, config: DatasetConfig, task: Any) -> Callable[..., list[Verdict]] | None:
    """What judges a data set: as the settings say, or else the task's method `verdict`, if it has
    one; None: the rule of the box.

    Raises:
        ConfigError: there is no such verdict.
    """
    if config.verdict == BOXED:
        return None
    if config.verdict is None:
        name, function = f"the verdict of {config.name}", getattr(task, "verdict", None)
    else:
        name = config.verdict
        function = make_part("verdict", key, name, config.verdict_options, given=GIVEN)
    return function and own_verdict(name, function)


def own_verdict(name: str, function: Callable[..., Any]) -> Callable[..., list[Verdict]]:
    """The function as a verdict on lists of completions and their problems.

    It is called with both, and with the judge that compares answers if it has an argument of that
    name. For each completion it gives a `Verdict`; or True, False or None: right, wrong, not in
    the required format, at the rule's rewards. The verdict raises PartError, under this name,
    if the function fails or gives anything else.
    """
    judged = JUDGE in inspect.signature(function).parameters

    def verdict(
        completions: Sequence[str], problems: Sequence[Problem], judge: Judge
    ) -> list[Verdict]:
        more = {JUDGE: judge} if judged else {}
        try:
            with as_it_was():
                found = function(completions, problems, **more)
                found = found.tolist() if hasattr(found, "tolist") else found  # of NumPy and torch
                # Generators may have no end.
                found = list(islice(iter(found), len(completions) + 1))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # the user's code may raise anything, sys.exit too
            raise PartError(f"{name}: {what(error)}") from error
        if len(found) != len(completions):
            told = len(found) if len(found) < len(completions) else f"more than {len(completions)}"
            raise PartError(f"{name}: {told} verdicts on {len(completions)} completions")
        return [_read(name, value) for value in found]

    return verdict


def _read(name: str, value: Any) -> Verdict:
    if isinstance(value, Verdict) and math.isfinite(value.reward):
        return value
    if value is None:
        return Verdict(REWARD_UNFORMATTED, formatted=False, correct=False)
    if isinstance(value, bool | np.bool_):
        reward = REWARD_CORRECT if value else REWARD_INCORRECT
        comparison = Comparison.EQUAL if value else Comparison.DIFFERENT
        return Verdict(reward, formatted=True, correct=bool(value), comparison=comparison)
    raise PartError(
        f"{name}: {value!r} is no verdict; give True, False, None (not in the required format), or "
        "a capo_ds.tasks.Verdict with a finite reward"
    )
