"""Where in a user's own files an error happened: what is shown of it, instead of our traceback."""

from __future__ import annotations

import traceback
from collections.abc import Iterator

_files: set[str] = set()


def remember(file: str) -> None:
    """A file that a setting names as `file.py:NAME`; its frames are the user's."""
    _files.add(file)


def place(error: BaseException | None) -> str:
    """The lines of the traceback from the user's first to the user's last, beginning with a line
    break; empty if the user's code had no part in it. Of an error that was raised from another, the
    first that was."""
    places = [told for cause in _causes(error) if (told := _lines(cause))]
    return places[-1] if places else ""


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, the one that it was raised from, and so on; each once."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        error = error.__cause__ or error.__context__
    return iter(seen)


def _lines(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [number for number, frame in enumerate(frames) if frame.filename in _files]
    if isinstance(error, SyntaxError) and error.filename in _files:
        return f'\n  File "{error.filename}", line {error.lineno}\n    {(error.text or "").strip()}'
    if not own:
        return ""
    return "\n" + "".join(traceback.format_list(frames[own[0] : own[-1] + 1])).rstrip()
