"""Text that reads well in the terminal that it goes to."""

from __future__ import annotations

import os
import shutil
import textwrap
from typing import TextIO

LEAST = 40  # columns; narrower terminals wrap by themselves


def columns(stream: TextIO) -> int | None:
    """Width to fit text into: the terminal's, or COLUMNS; None for files and pipes, whose lines
    stay whole for those who search them."""
    if stream.isatty() or "COLUMNS" in os.environ:
        return max(LEAST, shutil.get_terminal_size().columns)
    return None


def wrapped(text: str, width: int | None, indent: int = 2) -> str:
    """Each line cut at spaces into lines of the width at most, the later ones indented."""
    if width is None:
        return text
    return "\n".join(
        textwrap.fill(
            line,
            width,
            subsequent_indent=" " * indent,
            break_long_words=False,
            break_on_hyphens=False,
            replace_whitespace=False,
            drop_whitespace=True,
        )
        for line in text.split("\n")
    )


def aligned(rows: list[list[str]], width: int | None) -> str:
    """Rows of cells in columns of equal width; transposed where they would not fit."""
    lines = _lines(rows)
    if width is not None and len(lines[0]) > width:
        lines = _lines([list(column) for column in zip(*rows, strict=True)])
    return "\n".join(lines)


def _lines(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
