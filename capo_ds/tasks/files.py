"""Local files of problems, read as they stand: JSON, CSV, TSV, Parquet and Arrow, compressed too.

Text formats are read by Python itself, so that what a cell says is what a reference holds: `007`,
a number of thirty digits, or 0.1 pass through no column type that would round them. Paths are
taken letter by letter: `[ ]`, `*` and `?` in them are no patterns.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sized
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from capo_ds.config import ConfigError, decode
from capo_ds.tasks.opening import ENDINGS, unpacked

if TYPE_CHECKING:
    from datasets import Dataset

Row = dict[str, Any]
EXACT = 2**53  # beyond it float64 leaves out integers
# Words in a file's name, or in that of its folder, that make it part of a split.
SPLIT_WORDS = {
    "train": {"train", "training"},
    "test": {"test", "testing", "eval", "evaluation"},
    "validation": {"validation", "valid", "val", "dev"},
}


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
    names = re.findall(r"(?:^|\+)\s*(\w+)", spec)
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
    """Names of splits and their rows that a spec names."""
    import datasets

    sizes = {name: len(rows) for name, rows in splits.items()}
    parts = datasets.ReadInstruction.from_spec(spec).to_absolute(sizes)
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
        raise ValueError(f"no file of split {split!r} in it; it holds {names or 'no data files'}")
    forms: dict[Path, Path] = {}
    for path in chosen:
        bare = path.with_name(path.name[: path.name.lower().rindex(str(ending(path)))])
        if (other := forms.setdefault(bare, path)) is not path:
            raise ValueError(
                f"{other.relative_to(folder)} and {path.relative_to(folder)} in it seem to be the "
                "same rows in two forms; name one of them, or move one away"
            )
    return chosen


def plain_rows(table: Dataset) -> list[Row]:
    """Rows of a typed table in the words of its source: float32's 0.1 is 0.1 and not
    0.10000000149011612, and a class label is its name and not its index."""
    for name, feature in table.features.items():  # images and sounds stay files
        if (kind := _undecoded(feature)) is not None:
            table = table.cast_column(name, kind)
    rows = cast(Iterable[dict[str, Any]], table)
    return [{n: _plain(v, table.features[n]) for n, v in row.items()} for row in rows]


def _undecoded(feature: Any) -> Any:
    """The kind of an image or a sound, or of a list of them, that is not decoded; None: neither."""
    import datasets

    if getattr(feature, "decode", False):
        return cast(Any, type(feature))(decode=False)
    inner = getattr(feature, "feature", None)
    if getattr(inner, "decode", False):
        return datasets.List(cast(Any, type(inner))(decode=False))
    return None


def _of_all(files: list[Path]) -> list[Row]:
    rows = [row for file in files for row in read_file(file)]
    columns = dict.fromkeys(key for row in rows for key in row)
    return [{key: row.get(key) for key in columns} for row in rows]


def _plain(value: Any, feature: Any) -> Any:
    import datasets
    import numpy as np

    if value is None:
        return None
    if isinstance(feature, datasets.ClassLabel):
        return feature.int2str(value) if value >= 0 else None
    if isinstance(feature, datasets.Value) and feature.dtype in ("float16", "float32"):
        return float(str(np.dtype(feature.dtype).type(value)))
    if isinstance(feature, dict) and isinstance(value, dict):
        return {name: _plain(part, feature[name]) for name, part in value.items()}
    inner = getattr(feature, "feature", None)  # of a list
    if isinstance(value, list) and inner is not None:
        return [_plain(part, inner) for part in value]
    return value


# ---------------------------------------------------------------- the formats


def _json_lines(content: bytes, name: str) -> list[Row]:
    rows = []
    # Not splitlines: JSON text may hold U+2028 and its like.
    for number, line in enumerate(decode(content, name).split("\n"), start=1):
        if line.strip():
            row = _json(line, f"{name}, line {number}")
            rows.append(_object(row, f"{name}, line {number}", "; of one list, the name is .json"))
    return rows


def _json_whole(content: bytes, name: str) -> list[Row]:
    """A list of objects, one object a line, or one object."""
    text = decode(content, name).strip()
    if not text.startswith("["):
        try:
            row = json.loads(text)
        except ValueError:
            return _json_lines(text.encode(), name)
        if isinstance(row, dict) and all(isinstance(value, list) for value in row.values()):
            raise ConfigError(
                f"{name}: is one object of lists ({', '.join(map(repr, row))}), no list of rows; "
                "store the rows alone, as [{...}, {...}] or one a line"
            )
        text = f"[{text}]"
    rows = _json(text, name)
    return [_object(row, f"{name}, entry {number}") for number, row in enumerate(rows)]


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text, parse_float=_number, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not valid JSON: {error}") from error


def _once(pairs: list[tuple[str, Any]]) -> Row:
    """An object; Python's own keeps the last of two equal keys without a word."""
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(k for k in row if keys.count(k) > 1)!r} is there twice")
    return row


def _object(value: Any, where: str, hint: str = "") -> Row:
    if not isinstance(value, dict):
        hint = hint if isinstance(value, list) else ""
        raise ConfigError(
            f"{where}: a row must be an object, {{...}}, not {str(value)[:40]!r}{hint}"
        )
    return value


def _number(text: str) -> float | Decimal:
    """A float where it says the same in its shortest digits; else the digits themselves."""
    value, exact = float(text), Decimal(text)
    if abs(value) <= EXACT and Decimal(repr(value)) == exact:
        return value
    return exact


def _separated(delimiter: str) -> Callable[[bytes, str], list[Row]]:
    def read(content: bytes, name: str) -> list[Row]:
        text = io.StringIO(decode(content, name), newline="")
        csv.field_size_limit(2**31 - 1)
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        header: list[str] = []
        rows = []
        try:
            for cells in reader:
                if not cells:
                    continue
                if not header:
                    header = _header(cells, name, delimiter)
                elif len(cells) != len(header):
                    raise ConfigError(
                        f"{name}, line {reader.line_num}: {len(cells)} cells for "
                        f"{len(header)} columns; quote cells that hold the separator"
                    )
                else:
                    rows.append(cells)
        except csv.Error as error:
            raise ConfigError(f"{name}, line {reader.line_num}: {error}") from error
        columns = [_typed(column) for column in zip(*rows, strict=True)]
        return [dict(zip(header, cells, strict=True)) for cells in zip(*columns, strict=True)]

    return read


def _header(cells: list[str], name: str, delimiter: str) -> list[str]:
    if len(cells) == 1 and (others := [mark for mark in ",;\t|" if mark in cells[0]]):
        raise ConfigError(
            f"{name}, line 1: one column, {cells[0]!r}; its cells seem to be separated by "
            f"{others[0]!r}, not by {delimiter!r}: save it so, or name it .tsv if they are tabs"
        )
    if doubles := sorted({cell for cell in cells if cells.count(cell) > 1}):
        raise ConfigError(f"{name}, line 1: column {', '.join(map(repr, doubles))} is there twice")
    return cells


def _typed(cells: tuple[str, ...]) -> list[Any]:
    """Numbers, if every cell is one and says exactly what the number would say; empty is None."""
    filled = [cell for cell in cells if cell]
    for kind in (int, float):
        if filled and all(_says(cell, kind) for cell in filled):
            return [kind(cell) if cell else None for cell in cells]
    return [cell or None for cell in cells]


def _says(cell: str, kind: type) -> bool:
    try:
        value = kind(cell)
    except ValueError:
        return False
    return repr(value) == cell and math.isfinite(value) and abs(value) <= EXACT


def _parquet(content: bytes, name: str) -> list[Row]:
    import pyarrow.parquet

    return _table(lambda: pyarrow.parquet.read_table(io.BytesIO(content)), name)


def _arrow(content: bytes, name: str) -> list[Row]:
    """Of both kinds: the stream that `datasets` writes, and the file with a footer."""
    import pyarrow as pa

    is_file = content.startswith(b"ARROW1")
    return _table(lambda: (pa.ipc.open_file if is_file else pa.ipc.open_stream)(content), name)


def _table(read: Callable[[], Any], name: str) -> list[Row]:
    import datasets
    import pyarrow as pa

    try:
        table = read()
        table = table.read_all() if hasattr(table, "read_all") else table
        for number, field in enumerate(table.schema):
            _check_type(field)
            if pa.types.is_dictionary(field.type):
                # pandas' categories, in their own words
                values = table.column(number).cast(field.type.value_type)
                table = table.set_column(number, field.name, values)
        return plain_rows(datasets.Dataset(table))
    except (OSError, ValueError, TypeError, NotImplementedError, KeyError) as error:
        raise ConfigError(f"{name}: cannot be read: {error}") from error


def _check_type(field: Any) -> None:
    """Raises `ValueError` naming the column of a type that `datasets` does not have."""
    import pyarrow as pa
    from datasets.features.features import generate_from_arrow_type

    try:
        generate_from_arrow_type(field.type)
    except (ValueError, NotImplementedError, pa.ArrowException) as error:
        raise ValueError(
            f"column {field.name!r} is of type {field.type}; store it as text, or leave it out"
        ) from error


READERS: dict[str, Callable[[bytes, str], list[Row]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_whole,
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
    ".parquet": _parquet,
    ".arrow": _arrow,
}


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
