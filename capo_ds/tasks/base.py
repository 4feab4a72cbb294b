"""What every task is asked for, and hands to the rest of the project: a list of problems."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from capo_ds.config import DatasetConfig

Split = Literal["train", "test"]


@dataclass(frozen=True)
class Wanted:
    """What a task is asked for.

    Attributes:
        split: what the problems are for.
        limit: how many at most; None: all.
        path: where the settings say that they are; None: the task's own place.
        split_name: what the settings call the split there; None: the task's own name for it.
        settings: the data set's section, with its seed among others.
        section: where that stands in the settings, for messages.
    """

    split: Split
    limit: int | None
    path: str | None
    split_name: str | None
    settings: DatasetConfig
    section: str = "task"

    @property
    def path_key(self) -> str:
        """The key that says where the problems are."""
        own = self.split == "test" and getattr(self.settings, "test_path", None) is not None
        return f"{self.section}.{'test_path' if own else 'path'}"

    @property
    def split_key(self) -> str:
        """The key that names their split."""
        of_both = hasattr(self.settings, "train_split")
        return f"{self.section}.{f'{self.split}_split' if of_both else 'split'}"


@dataclass(frozen=True)
class Problem:
    """One prompt with a verifiable answer.

    Attributes:
        prompt: the problem's own text as the task tells it; after `prompts.render`, the full text
            given to the model, which the completion follows directly.
        messages: the conversation, where the data set gives one in place of a text; after
            `prompts.render`, as it was sent to the chat template.
        tokens: the prompt as token ids, once `prompts.render` has made them.
        answer: reference answer, as it would stand inside the box.
        solution: worked solution in the required format (it scores 1.0), used as a demonstration
            in the supervised warm-up; None where the task has none.
        columns: the data set's row, or further facts such as the level: what a user's reward
            function gets, and what reports group by.
        verdict: what judges completions, given them and their problems in lists and the judge that
            compares answers; None: the rule of the box. See `tasks.verdicts`.
        source: the label of the data set that it is of, which metrics and reports group by.
    """

    prompt: str
    answer: str
    solution: str | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    messages: list[dict[str, Any]] | None = None
    tokens: tuple[int, ...] | None = None
    verdict: Callable[..., list[Any]] | None = field(default=None, compare=False, repr=False)
