"""Tasks: problems with verifiable answers, and the rules that reward completions.

A data set is a part (`capo_ds.parts`), which gives problems when it is called with a `Wanted`, and
may bring its own verdict; a task is one data set or a mixture of several (`mixture`).
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capo_ds.own_code import place
from capo_ds.parts import MARK
from capo_ds.plugins import make_part, what
from capo_ds.tasks.base import Problem, Split, Wanted
from capo_ds.tasks.files import is_one_split
from capo_ds.tasks.judge import Judge
from capo_ds.tasks.rewards import Scorer, Scores, Verdict, score
from capo_ds.tasks.verdicts import verdict_of

if TYPE_CHECKING:
    from capo_ds.config import BenchmarkConfig, TaskConfig, TrainingSetConfig

__all__ = [
    "Judge",
    "Problem",
    "Scorer",
    "Scores",
    "Split",
    "Verdict",
    "Wanted",
    "load_benchmark",
    "load_data_set",
    "load_problems",
    "score",
]


def load_problems(config: "TaskConfig", split: Split) -> list[Problem]:
    """The problems of the configured task's split, the same on every rank for the same config;
    of a mixture, those of each of its data sets in turn.

    Raises:
        ConfigError: there is no such data, or it cannot be read.
        ValueError: the generated task cannot give what the config asks for.
    """
    entries = zip(config.entries, config.places, strict=True)
    return [problem for entry, place in entries for problem in load_data_set(entry, split, place)]


def load_data_set(
    config: "TrainingSetConfig", split: Split, section: str = "task"
) -> list[Problem]:
    """The problems of one data set's split. section: where it stands in the settings. Raises as
    `load_problems` does."""
    from capo_ds.config import ConfigError

    if split == "train":
        wanted = Wanted(
            split, config.train_problems, config.path, config.train_split, config, section
        )
        return _load(wanted)
    if config.test_path is None and config.path is not None and is_one_split(Path(config.path)):
        raise ConfigError(
            f"{section}.test_path: {config.path!r} is one split, for training; name another for "
            "testing, or evaluation.benchmarks, or set train.eval_every=0"
        )
    path = config.test_path or config.path
    return _load(Wanted(split, config.test_problems, path, config.test_split, config, section))


def load_benchmark(
    config: "BenchmarkConfig", limit: int | None, section: str = "evaluation.benchmarks"
) -> list[Problem]:
    """A benchmark's problems, at most `limit`. section: where it stands in the settings. Raises as
    `load_problems` does."""
    return _load(Wanted("test", limit, config.path, config.split, config, section))


def _load(wanted: Wanted) -> list[Problem]:
    """The problems, labelled, each with its verdict."""
    config, section = wanted.settings, wanted.section
    task = make_part("task", f"{section}.name", config.name, config.options, given=("wanted",))
    problems = _of_ones_own(task, wanted) if MARK in config.name else task(wanted)
    verdict = verdict_of(f"{section}.verdict", config, task)
    return [replace(problem, source=config.title, verdict=verdict) for problem in problems]


def _of_ones_own(task: Callable[[Wanted], Any], wanted: Wanted) -> list[Problem]:
    """What a task of the user's gives. Raises `ConfigError` if it is no list of problems."""
    from capo_ds.config import ConfigError

    name = f"{wanted.section}.name: {wanted.settings.name}"
    try:
        problems = list(task(wanted))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the user's code may raise anything, sys.exit too
        raise ConfigError(
            f"{name}: its {wanted.split} problems: {what(error)}{place(error)}"
        ) from error
    if not problems:
        raise ConfigError(f"{name}: it gives no {wanted.split} problems")
    for number, problem in enumerate(problems):
        told = isinstance(problem, Problem) and [problem.prompt, problem.answer]
        if not told or not all(isinstance(text, str) for text in told):
            raise ConfigError(
                f"{name}: {wanted.split} problem {number} is no capo_ds.tasks.Problem with prompt "
                f"and answer in text: {problem!r:.100}"
            )
    return problems[: wanted.limit]
