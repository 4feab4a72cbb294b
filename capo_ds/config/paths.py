"""Paths as people write them: `~`, `~name`, `$NAME` and `${NAME}` are what they are in a shell."""

from __future__ import annotations

import os
import re
from typing import Annotated

from pydantic import AfterValidator

_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|([A-Za-z_]\w*))")


def expand(path: str) -> str:
    """The path with a leading `~` and with variables of the environment replaced.

    A folder whose name begins with `~` is written `./~name`. Raises `ValueError` for an empty
    path, an unknown user and a variable that is not set.
    """
    if not path.strip():
        raise ValueError("a path cannot be empty")
    if "\0" in path:
        raise ValueError("a path cannot hold a zero byte")

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in os.environ:
            raise ValueError(f"the environment has no variable {name}; set it, or write the path")
        return os.environ[name]

    path = os.path.expanduser(_VARIABLE.sub(value, path))
    if path.startswith("~"):
        raise ValueError(
            f"no home folder for {path.split('/')[0]!r}; write the whole path, or ./~... for a "
            "folder of that name"
        )
    return path


PathText = Annotated[str, AfterValidator(expand)]
