"""Tasks: problems with verifiable answers, and the rules that reward completions.

A data set is either generated (`arithmetic`) or an entry of `sources.SOURCES`, under the name that
stands in the configuration.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from capo_ds.tasks import arithmetic
from capo_ds.tasks.base import Problem
from capo_ds.tasks.judge import Judge
from capo_ds.tasks.rewards import Scorer, Scores, Verdict, score
from capo_ds.tasks.sources import Split, load_source

if TYPE_CHECKING:
    from capo_ds.config import BenchmarkConfig, DatasetConfig, TaskConfig

__all__ = [
    "Judge",
    "Problem",
    "Scorer",
    "Scores",
    "Split",
    "Verdict",
    "load_benchmark",
    "load_problems",
    "score",
]


def load_problems(config: "TaskConfig", split: Split) -> list[Problem]:
    """The problems of the configured task's split, the same on every rank for the same config.

    Raises:
        ConfigError: there is no such data, or it cannot be read.
        ValueError: the generated task cannot give what the config asks for.
    """
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
        return arithmetic.generate(split, count, config.levels, config.seed)
    return load_source(config, split, path, name, limit)
