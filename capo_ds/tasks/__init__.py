"""Tasks: problems with verifiable answers, and the rule that rewards completions.

A task is a function `(config, split) -> list[Problem]` in a module of its own, entered in TASKS
under the name that stands in the configuration.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from capo_ds.tasks import arithmetic
from capo_ds.tasks.base import Problem
from capo_ds.tasks.rewards import Verdict, score

if TYPE_CHECKING:
    from capo_ds.config import TaskConfig

Split = Literal["train", "test"]

__all__ = ["TASKS", "Problem", "Split", "Verdict", "load_problems", "score"]


def _arithmetic(config: "TaskConfig", split: Split) -> list[Problem]:
    count = config.train_problems if split == "train" else config.test_problems
    return arithmetic.generate(split, count, config.levels, config.seed)


TASKS: dict[str, Callable[["TaskConfig", Split], list[Problem]]] = {"arithmetic": _arithmetic}


def load_problems(config: "TaskConfig", split: Split) -> list[Problem]:
    """The problems of the configured task's split, the same on every rank for the same config.

    Raises:
        ValueError: the task is unknown, or cannot give what the config asks for.
    """
    if config.name not in TASKS:
        raise ValueError(f"unknown task {config.name!r}: choose among {sorted(TASKS)}")
    return TASKS[config.name](config, split)
