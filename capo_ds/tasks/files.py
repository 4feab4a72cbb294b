"""Local files of problems, read as they stand: JSON, CSV, TSV, Parquet and Arrow, compressed too.

Paths are taken letter by letter: `[ ]`, `*` and `?` in them are no patterns.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sized
from decimal import Decimal
from pathlib import Path
from typing import Any

from capo_ds.config import ConfigError
from capo_ds.tasks.file_formats import EXACT, READERS, Row, plain_rows
from capo_ds.tasks.opening import ENDINGS, unpacked

# Words in a file's name, or in that of its folder, that make it part of a split.
SPLIT_WORDS = {
    "train": {"train", "training"},
    "test": {"test", "testing", "eval", "evaluation"},
    "validation": {"validation", "valid", "val", "dev"},
}

SPLIT_NAME = r"(?:^|\+)\s*(\w+)"  # in the words of the `datasets` library: train[:100]+test


class SplitError(ConfigError):
    """There is no such split; the text tells what there is."""


def ending(path: Path) -> str | None:
    """The format by a file's name, such as `.jsonl` for Rows.JSONL.gz; None for others."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in ENDINGS:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in READERS else None


def read_file(path: Path) -> list[Row]:
    """The rows of a file; each has the same keys (None where its own lacks one).

    Raises `ConfigError` naming file, and line where there is one.
    """
    form = ending(path)
    if form is None:
        raise ConfigError(
            f"{path}: files of this name are not read; use {', '.join(READERS)}, each also with "
            f"{', '.join(ENDINGS)}"
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    rows = READERS[form](unpacked(content, str(path)), str(path))
    columns = dict.fromkeys(key for row in rows for key in row)
    return [{key: row.get(key) for key in columns} for row in rows]


def read_split(place: Path, spec: str) -> list[Row]:
    """The rows of a split of a file (which is one split, train) or of a folder of files.

    spec: its name, or a part of it in the words of the `datasets` library: `train[:100]`.
    """
    names = re.findall(SPLIT_NAME, spec)
    if place.is_file():
        rows = {"train": read_file(place)}
    else:
        rows = {name: _of_all(files_of_split(place, name)) for name in names}
    return [
        row for name, numbers in _parts(rows, spec) for row in map(rows[name].__getitem__, numbers)
    ]


def saved_split(place: Path, spec: str | None, own_split: str) -> list[Row]:
    """The rows of a split of what `save_to_disk` of the `datasets` library has written: one split,
    which is taken whole without a spec, or a dict of several. Raises `ValueError`."""
    import datasets

    saved = datasets.load_from_disk(str(place))
    if isinstance(saved, datasets.DatasetDict):
        spec, splits = spec or own_split, {str(name): rows for name, rows in saved.items()}
    else:
        spec, splits = spec or "train", {"train": saved, str(saved.split or "train"): saved}
    tables = [(splits[name], numbers) for name, numbers in _parts(splits, spec)]
    return [row for table, numbers in tables for row in plain_rows(table.select(numbers))]


def _parts(splits: Mapping[str, Sized], spec: str) -> list[tuple[str, range]]:
    """Names of splits and their rows that a spec names. Raises `ConfigError`."""
    import datasets

    unknown = [name for name in re.findall(SPLIT_NAME, spec) if name not in splits]
    if unknown:
        raise SplitError(
            f"it has no split {unknown[0]!r}, but {', '.join(splits)}"
            + (" (a file is one split)" if [*splits] == ["train"] else "")
        )
    sizes = {name: len(rows) for name, rows in splits.items()}
    try:
        parts = datasets.ReadInstruction.from_spec(spec).to_absolute(sizes)
    except ValueError as error:
        raise SplitError(f"{spec!r}: {error}; write train, train[:100] or train[:10%]") from error
    return [(part.splitname, range(part.from_, part.to)) for part in parts]


def is_one_split(place: Path) -> bool:
    """Whether it is a file, or a folder, that holds one split alone."""
    return place.is_file() or (place / "state.json").is_file()


def files_of_split(folder: Path, split: str) -> list[Path]:
    """A folder's files whose path has the split's name in it; all are train if none has any."""
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and ending(path)
        and not any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)
    )
    words = {
        path: set(re.split(r"[^a-z0-9]+", str(path.relative_to(folder)).lower())) for path in files
    }
    known = SPLIT_WORDS | {split: SPLIT_WORDS.get(split, {split})}
    chosen = [path for path in files if words[path] & known[split]]
    if not chosen and split == "train":
        chosen = [p for p in files if not any(words[p] & names for names in known.values())]
    if not chosen:
        names = ", ".join(str(path.relative_to(folder)) for path in files[:10])
        raise SplitError(f"no file of split {split!r} in it; it holds {names or 'no data files'}")
    forms: dict[Path, Path] = {}
    for path in chosen:
        bare = path.with_name(path.name[: path.name.lower().rindex(str(ending(path)))])
        if (other := forms.setdefault(bare, path)) is not path:
            raise ValueError(
                f"{other.relative_to(folder)} and {path.relative_to(folder)} in it seem to be the "
                "same rows in two forms; name one of them, or move one away"
            )
    return chosen


def _of_all(files: list[Path]) -> list[Row]:
    rows = [row for file in files for row in read_file(file)]
    columns = dict.fromkeys(key for row in rows for key in row)
    return [{key: row.get(key) for key in columns} for row in rows]


def exact_text(value: Any) -> str:
    """A cell as a box would hold it: 27.0 is 27, text stays as it is (073 too).

    Raises `ValueError` for what has no such words: nothing, a truth value, bytes, a date, a list,
    NaN, and a float64 so large that it does not tell its last digits.
    """
    if value is None or value == "":
        raise ValueError("is empty")
    if isinstance(value, str):
        if halves := re.search("[\ud800-\udfff]", value):
            raise ValueError(f"holds half a character, {halves[0]!r}; write it as UTF-8")
        return value.strip()
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        kind = type(value).__name__
        raise ValueError(f"holds {_article(kind)} {kind}, no text or number; store it as text")
    if isinstance(value, float | Decimal) and not math.isfinite(value):
        raise ValueError(f"holds {value}, no number")
    if isinstance(value, float):
        if abs(value) > EXACT:
            raise ValueError(
                f"holds {value!r}, whose last digits a float has lost; store it as text"
            )
        value = Decimal(repr(value))
    if isinstance(value, Decimal):
        if abs(value.adjusted()) > 4000:
            raise ValueError(f"holds {value}, a number of too many digits")
        text = format(value, "f")
        return text.split(".")[0] if value == value.to_integral_value() else text
    return str(value)


def _article(kind: str) -> str:
    return "an" if kind[0] in "aeiou" else "a"
