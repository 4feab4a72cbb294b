"""The rule-based reward, and rewards that the user supplies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from capo_ds.own_code import PartError
from capo_ds.plugins import make_part
from capo_ds.precision import DOUBLE, roundings
from capo_ds.tasks.base import Problem
from capo_ds.tasks.format import final_answer
from capo_ds.tasks.functions import OURS, call_all, check_arguments
from capo_ds.tasks.judge import Judge
from capo_ds.tasks.outcome import Comparison, Outcome

if TYPE_CHECKING:
    from capo_ds.config import RewardConfig

KEY = "reward.functions"
REWARD_CORRECT = 1.0  # right format, right answer
REWARD_INCORRECT = -0.5  # right format, wrong answer
REWARD_UNFORMATTED = -1.0  # wrong format
UNFORMATTED = r"not one closed \boxed{...} at the end"


@dataclass(frozen=True)
class Verdict:
    """Judgement of one completion by the rule; `correct` implies `formatted`.

    Attributes:
        comparison: of the boxed answer; None without the format.
        read_as, reference_as: the types that the answer and the reference were read as.
        reason: why the answer is right, wrong or unparsed.
    """

    reward: float
    formatted: bool
    correct: bool
    comparison: Comparison | None = None
    read_as: str = field(default="", compare=False)
    reference_as: str = field(default="", compare=False)
    reason: str = field(default="", compare=False)

    @property
    def word(self) -> str:
        """right, wrong, unparsed, timed out, unjudged, or unformatted."""
        if self.comparison is None:
            return "unformatted"
        words = {Comparison.EQUAL: "right", Comparison.DIFFERENT: "wrong"}
        return words.get(self.comparison, self.comparison.value)

    @property
    def told(self) -> str:
        """The reason with the types, where there is one: `set for tuple: ...`."""
        if not self.reason or not self.formatted:
            return self.reason
        return f"{self.read_as or 'unread'} for {self.reference_as or 'unread'}: {self.reason}"


@dataclass(frozen=True)
class Scores:
    """Rewards of a list of completions.

    Attributes:
        verdicts: of each problem's data set, whichever functions give the reward.
        rewards: the weighted sum over the functions.
        roundings: what rounding of the sum's terms may have changed in each reward.
        parts: by function, the rewards that it gave (unweighted; None where it gave none).
    """

    verdicts: list[Verdict]
    rewards: list[float]
    roundings: list[float]
    parts: dict[str, list[float | None]]


def score(completions: Sequence[str], problems: Sequence[Problem], judge: Judge) -> list[Verdict]:
    """The verdict of each problem's data set on completions[i], text without special tokens.

    Raises:
        ValueError: the two sequences differ in length.
        PartError: a verdict of the user's failed.
    """
    if len(completions) != len(problems):
        raise ValueError(f"{len(completions)} completions for {len(problems)} problems")
    rows: dict[Callable[..., list[Verdict]], list[int]] = {}
    for row, problem in enumerate(problems):
        rows.setdefault(problem.verdict or boxed, []).append(row)
    found: dict[int, Verdict] = {}
    for verdict, own in rows.items():
        texts, posed = [completions[row] for row in own], [problems[row] for row in own]
        found |= zip(own, verdict(texts, posed, judge), strict=True)
    return [found[row] for row in range(len(problems))]


def boxed(completions: Sequence[str], problems: Sequence[Problem], judge: Judge) -> list[Verdict]:
    """Apply the rule of the box to completions[i] as an answer to problems[i]."""
    answers = [final_answer(completion) for completion in completions]
    pairs = [
        (answer, problem.answer)
        for answer, problem in zip(answers, problems, strict=True)
        if answer is not None
    ]
    outcomes = iter(judge.explain(pairs))
    return [_verdict(None if answer is None else next(outcomes)) for answer in answers]


def _verdict(outcome: Outcome | None) -> Verdict:
    if outcome is None:
        return Verdict(REWARD_UNFORMATTED, formatted=False, correct=False, reason=UNFORMATTED)
    correct = outcome.comparison is Comparison.EQUAL
    reward = REWARD_CORRECT if correct else REWARD_INCORRECT
    told = {"read_as": outcome.given, "reference_as": outcome.reference, "reason": outcome.reason}
    return Verdict(reward, formatted=True, correct=correct, comparison=outcome.comparison, **told)


def rule(verdicts: Sequence[Verdict]) -> list[float]:
    """The reward function of that name: what the verdicts are worth."""
    return [verdict.reward for verdict in verdicts]


class Scorer:
    """The reward that a config asks for: the rule, the user's functions, or a weighted sum."""

    def __init__(self, config: RewardConfig, judge: Judge):
        """Raises `ConfigError` if a function cannot be loaded."""
        self._judge, self._budget = judge, config.step_budget
        self._weights = {entry.title: entry.weight for entry in config.functions}
        self._functions = {
            entry.title: make_part(
                "reward", KEY, entry.function, entry.options, given=OURS, columns=True
            )
            for entry in config.functions
        }
        self._columns: set[str] = set()

    def check(self, problems: Sequence[Problem]) -> None:
        """Raises `ConfigError` if a function asks for what the problems to come do not have."""
        self._columns = {name for problem in problems for name in problem.columns}
        check_arguments(self._functions, self._columns)

    def __call__(
        self,
        completions: Sequence[str],
        problems: Sequence[Problem],
        completion_ids: Sequence[Sequence[int]] = (),
    ) -> Scores:
        """Rewards of completions[i], of those token ids, as an answer to problems[i].

        Raises:
            PartError: a user's function failed or returned what is no list of rewards.
        """
        with self._judge.within(self._budget):
            verdicts = score(completions, problems, self._judge)
        columns = self._columns.union(*(problem.columns for problem in problems))
        parts = call_all(self._functions, completions, problems, completion_ids, columns, verdicts)
        for number, rewards in enumerate(zip(*parts.values(), strict=True)):
            if all(reward is None for reward in rewards):
                raise PartError(
                    f"{', '.join(self._weights)}: no function rewards a completion, number "
                    f"{number}: {completions[number]!r:.200}, of the prompt "
                    f"{problems[number].prompt!r:.200}"
                )
        sums = [self._sum(given) for given in zip(*parts.values(), strict=True)]
        rewards, rounding = [list(column) for column in zip(*sums, strict=True)] or ([], [])
        return Scores(verdicts, rewards, rounding, parts)

    def _sum(self, given: Sequence[float | None]) -> tuple[float, float]:
        """The weighted sum of what each function gave one completion, and its terms' rounding."""
        weighted = zip(self._weights.values(), given, strict=True)
        known = [(weight, reward) for weight, reward in weighted if reward is not None]
        terms = [weight * reward for weight, reward in known]
        weights, rewards = np.array(known).T
        rounding = np.abs(weights) @ roundings(rewards) + np.abs(terms).sum() * DOUBLE
        return math.fsum(terms), float(rounding)
