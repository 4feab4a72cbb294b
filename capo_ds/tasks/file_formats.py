"""The formats of files of problems: rows as their text says them, or as their table holds them.

Text formats are read by Python itself, so that what a cell says is what a reference holds: `007`,
a number of thirty digits, or 0.1 pass through no column type that would round them.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import TYPE_CHECKING, Any, cast

from capo_ds.config import ConfigError, decode

if TYPE_CHECKING:
    from datasets import Dataset

Row = dict[str, Any]
EXACT = 2**53  # beyond it float64 leaves out integers


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


READERS: dict[str, Callable[[bytes, str], list[Row]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_whole,
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
    ".parquet": _parquet,
    ".arrow": _arrow,
}
