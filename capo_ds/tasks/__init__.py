"""Tasks: problems with verifiable answers, and the rules that reward completions.

A data set is either generated (`arithmetic`) or an entry of `sources.SOURCES`, under the name that
stands in the configuration; a task is one data set or a mixture of several (`mixture`).
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from capo_ds.tasks import arithmetic
from capo_ds.tasks.base import Problem
from capo_ds.tasks.judge import Judge
from capo_ds.tasks.rewards import Scorer, Scores, Verdict, score
from capo_ds.tasks.sources import Split, load_source

if TYPE_CHECKING:
    from capo_ds.config import BenchmarkConfig, DatasetConfig, TaskConfig, TrainingSetConfig

__all__ = [
    "Judge",
    "Problem",
    "Scorer",
    "Scores",
    "Split",
    "Verdict",
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
    return [problem for entry in config.entries for problem in load_data_set(entry, split)]


def load_data_set(config: "TrainingSetConfig", split: Split) -> list[Problem]:
    """The problems of one data set's split. Raises as `load_problems` does."""
    from capo_ds.config import ConfigError

    if split == "train":
        return _load(config, split, config.path, config.train_split, config.train_problems)
    if config.test_path is None and config.path is not None and Path(config.path).is_file():
        raise ConfigError(
            f"task.test_path: {config.path!r} is one file, for training; name another for testing, "
            "or evaluation.benchmarks, or set train.eval_every=0"
        )
    path = config.test_path or config.path
    return _load(config, split, path, config.test_split, config.test_problems)


def load_benchmark(config: "BenchmarkConfig", limit: int | None) -> list[Problem]:
    """A benchmark's problems, at most `limit`. Raises as `load_problems` does."""
    return _load(config, "test", config.path, config.split, limit)


def _load(
    config: "DatasetConfig", split: Split, path: str | None, name: str | None, limit: int | None
) -> list[Problem]:
    if config.name == "arithmetic":
        count = limit or arithmetic.SIZES[split]
        problems = arithmetic.generate(split, count, config.levels, config.seed, config.asks)
    else:
        problems = load_source(config, split, path, name, limit)
    return [replace(problem, source=config.title) for problem in problems]
