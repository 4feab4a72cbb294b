"""Data sets of problems through the `datasets` library: from the hub, or from local files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from capo_ds.config import ConfigError
from capo_ds.tasks.answers import find_boxes
from capo_ds.tasks.base import Problem, Split, Wanted
from capo_ds.tasks.columns import check_media, conversation, decoded, holds, last_words, value_at
from capo_ds.tasks.file_formats import READERS, plain_rows
from capo_ds.tasks.files import SplitError, ending, exact_text, read_split, saved_split
from capo_ds.tasks.rewards import final_answer

_CALCULATION = re.compile(r"<<[^<>]*>>")  # GSM8K's notes to a calculator: 48/2 = <<48/2=24>>24
# How `datasets` begins to tell of a split, or of a subset, that is not there.
_NO_SPLIT = r"Unknown split|Unrecognized instruction|Percent slice"
_NO_SUBSET = r"BuilderConfig .* not found|Config name is missing"
_LOOSE_BOX = re.compile(r"\\(?:boxed|fbox) ([^$]+?)\s*(?:\$|$)")


def after_hashes(text: str) -> str:
    """GSM8K's answer: what stands after `####`, as it stands there (1,080)."""
    _, marker, answer = str(text).rpartition("####")
    if not marker:
        raise ValueError("no '####' before the answer; data set custom takes a column as it is")
    return answer.strip()


def gsm8k_solution(text: str) -> str:
    r"""GSM8K's solution in the required format: without calculator notes, the answer boxed."""
    steps = _CALCULATION.sub("", text.rpartition("####")[0]).strip()
    return f"{steps}\n\\boxed{{{after_hashes(text)}}}"


def last_box(text: str) -> str:
    r"""MATH's answer: the content of the last `\boxed{...}` (some solutions have `\boxed 5` or
    `\fbox{5}`)."""
    text = str(text).replace(r"\fbox{", r"\boxed{")
    if boxes := find_boxes(text):
        return boxes[-1].content.strip()
    if loose := _LOOSE_BOX.findall(text):
        return loose[-1]
    raise ValueError(r"no \boxed{...} in it; data set custom takes a column as it is")


@dataclass(frozen=True)
class Source:
    """A task: where a data set is, what its columns are called, and how its answers are read.

    The readers raise `ValueError` for a value that holds no answer.
    """

    path: str | None
    subset: str | None
    splits: Mapping[Split, str]
    prompt: str | None
    answer: str | None
    solution: str | None
    read_answer: Callable[[Any], str] = exact_text
    read_solution: Callable[[str], str] = str

    def __call__(self, wanted: Wanted) -> list[Problem]:
        """Its problems. Raises `ConfigError`, as `load_source`."""
        return load_source(self, wanted)


GSM8K = Source(
    path="openai/gsm8k",
    subset="main",
    splits={"train": "train", "test": "test"},
    prompt="question",
    answer="answer",
    solution="answer",
    read_answer=after_hashes,
    read_solution=gsm8k_solution,
)
MATH = Source(
    path="DigitalLearningGmbH/MATH-lighteval",
    subset=None,
    splits={"train": "train", "test": "test"},
    prompt="problem",
    answer="solution",
    solution="solution",
    read_answer=last_box,
)
AMC23 = Source(
    path="math-ai/amc23",
    subset=None,
    splits={"test": "test"},
    prompt="question",
    answer="answer",
    solution=None,
)
AIME24 = Source(
    path="HuggingFaceH4/aime_2024",
    subset=None,
    splits={"test": "train"},  # the hub's only split has that name
    prompt="problem",
    answer="answer",
    solution="solution",
)
CUSTOM = Source(
    path=None,
    subset=None,
    splits={"train": "train", "test": "test"},
    prompt=None,
    answer=None,
    solution=None,
)


def load_source(source: Source, wanted: Wanted) -> list[Problem]:
    """Problems of a data set, in the order of its rows or shuffled by the settings' seed.

    Raises:
        ConfigError: there is no such data, or a row holds no problem.
    """
    config, split = wanted.settings, wanted.split
    where = f"data set {config.name} ({wanted.path or source.path or ''})"
    if wanted.split_name is None and split not in source.splits:
        raise ConfigError(
            f"{wanted.split_key}: {where}: it has no {split} problems of its own; name another "
            "data set, or a split"
        )
    rows = load_rows(source, wanted)
    if not rows:
        raise ConfigError(f"{wanted.path_key}: {where}: it holds no rows; give one with rows")
    order = np.random.default_rng(config.seed).permutation(len(rows)) if config.shuffle else None
    numbers = list(range(len(rows)) if order is None else order.tolist())[: wanted.limit]
    prompt = config.prompt_column or source.prompt or ""
    answer = config.answer_column or source.answer or ""
    solution = config.solution_column or source.solution
    named = {"prompt_column": prompt, "answer_column": answer}
    if config.solution_column:
        named["solution_column"] = config.solution_column
    for key, column in named.items():
        if not holds(rows[0], column):
            there, key = ", ".join(map(repr, rows[0])), f"{wanted.section}.{key}"
            raise ConfigError(f"{key}: {where}: no column {column!r}; set {key} to one of {there}")
    problems = []
    for number in numbers:
        try:
            problems.append(_problem(rows[number], source, prompt, answer, solution))
        except _CellError as error:
            key = f"{wanted.section}.{error.key}" if error.key else wanted.path_key
            remedy = "" if ";" in str(error) else "; mend the row, or leave it out"
            raise ConfigError(f"{key}: {where}: row {number}: {error}{remedy}") from error
    return problems


class _CellError(ValueError):
    """What a row holds is no problem. key: that names the column, or none."""

    def __init__(self, key: str, words: str):
        super().__init__(words)
        self.key = key


@contextmanager
def _of(key: str) -> Iterator[None]:
    """What is raised inside is about the column that the key names."""
    try:
        yield
    except ValueError as error:
        raise _CellError(key, str(error)) from error


def _problem(
    row: dict[str, Any], source: Source, prompt: str, answer: str, solution: str | None
) -> Problem:
    with _of(""):
        check_media(row)
    with _of("prompt_column"):
        text, messages = _asked(row, prompt)
    with _of("answer_column"):
        reference = _reference(row, source, answer)
    with _of("solution_column"):
        steps = value_at(row, solution) if solution and holds(row, solution) else None
        worked = source.read_solution(steps) if steps else None
    if worked is not None and final_answer(worked) is None:
        worked = None  # not in the required format: nothing to imitate
    return Problem(text, reference, worked, dict(row), messages=messages)


def _asked(row: dict[str, Any], column: str) -> tuple[str, list[dict[str, Any]] | None]:
    """The problem's own text, and the conversation that it is in, if it is in one."""
    value = _decoded(value_at(row, column), column)
    if isinstance(value, list):
        messages = conversation(value, column)
        said, text = [message["content"] for message in messages], last_words(messages)
    else:
        messages, told = None, _text(value, column)
        said, text = [told], value if isinstance(value, str) else told
    if not any(words.strip() for words in said):
        raise ValueError(f"column {column!r} holds blanks alone")
    return text, messages


def _reference(row: dict[str, Any], source: Source, column: str) -> str:
    value = _decoded(value_at(row, column), column)  # the text of messages is a list as well
    if isinstance(value, list | dict):
        raise ValueError(
            f"column {column!r} holds {'a list' if isinstance(value, list) else 'an object'}, no "
            "text or number; name the column of the answers (dots lead into it: "
            "reward_model.ground_truth), or store its text"
        )
    reference = source.read_answer(_text(value, column))
    if not reference:
        raise ValueError(f"column {column!r} holds no answer")
    return reference


def _decoded(value: Any, column: str) -> Any:
    try:
        return decoded(value)
    except ValueError as error:
        raise ValueError(f"column {column!r} {error}") from error


def _text(value: Any, column: str) -> str:
    try:
        return exact_text(value)
    except ValueError as error:
        raise ValueError(f"column {column!r} {error}") from error


def is_local(path: str) -> bool:
    """Whether a path is no name of the hub: it exists here, or could not be one."""
    from capo_ds.config import looks_like_a_path

    place = Path(path)
    return place.exists() or bool(ending(place)) or looks_like_a_path(path)


class SubsetError(ConfigError):
    """It has no subsets."""


def load_rows(source: Source, wanted: Wanted) -> list[dict[str, Any]]:
    """The rows of one split. A file or folder of that name comes before the hub.

    Raises:
        ConfigError: with what the reader of the file, or the `datasets` library, says.
    """
    from datasets.exceptions import DatasetsError

    path = wanted.path or source.path or ""
    told = f"data set {path!r} cannot be loaded"
    try:
        return _rows(path, source, wanted)
    except SplitError as error:
        raise ConfigError(f"{wanted.split_key}: {told}: {error}") from error
    except SubsetError as error:
        raise ConfigError(f"{wanted.section}.subset: {told}: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{wanted.path_key}: {told}: {error}") from error
    except StopIteration as error:
        raise ConfigError(
            f"{wanted.path_key}: data set {path!r} is empty; give one with rows"
        ) from error
    except (OSError, ValueError, KeyError, DatasetsError) as error:
        cause = error.__cause__ or error  # which `datasets` wraps in "an error occurred"
        for key, words in ((wanted.split_key, _NO_SPLIT), (f"{wanted.section}.subset", _NO_SUBSET)):
            if re.match(words, str(cause)):
                raise ConfigError(f"{key}: {told}: {' '.join(str(cause).split())}") from error
        kind = f"{type(cause).__name__}: " if not isinstance(cause, FileNotFoundError) else ""
        raise ConfigError(
            f"{wanted.path_key}: {told}: {kind}{cause}; give a hub name, or a sound local folder "
            f"or file ({', '.join(READERS)})"
        ) from error


def _rows(path: str, source: Source, wanted: Wanted) -> list[dict[str, Any]]:
    import datasets

    datasets.disable_progress_bars()
    subset, split_name = wanted.settings.subset, wanted.split_name
    place, own_split = Path(path), source.splits.get(wanted.split, "")
    if subset and (place.is_file() or is_saved(place)):
        raise SubsetError(f"subset {subset!r} is for data sets of the hub; remove it")
    if place.is_file():
        return read_split(place, split_name or "train")  # one file is one split
    if is_saved(place):
        return saved_split(place, split_name, own_split)
    if place.is_dir() and not (subset or _has_configurations(place)):
        return read_split(place, split_name or own_split)
    if place.is_dir():  # a copy of the hub's, whose README says what is where
        return plain_rows(datasets.load_dataset(str(place), subset, split=split_name or own_split))
    if is_local(path):
        raise FileNotFoundError(f"no file or folder {path!r}")
    subset = subset or source.subset
    return plain_rows(datasets.load_dataset(path, subset, split=split_name or own_split))


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` of the `datasets` library has written it."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _has_configurations(folder: Path) -> bool:
    """Whether it is a copy of a data set of the hub whose README lists its files."""
    readme = folder / "README.md"
    return readme.is_file() and b"\nconfigs:" in readme.read_bytes()
