"""Paths as people write them: `~`, `~name`, `$NAME` and `${NAME}` are what they are in a shell."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from capo_ds.config.errors import ConfigError

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


def looks_like_a_path(name: str) -> bool:
    """Whether it could be no name of the hub."""
    return name.startswith(("/", ".", "~"))


def folder_named(key: str, name: str) -> Path | None:
    """The folder of that name here, which comes before the hub's; None for a name of the hub.

    key: for the message.
    Raises:
        ConfigError: for what looks like a path and is none: libraries would ask the hub for long.
    """
    folder = Path(os.path.expanduser(name))
    if folder.is_dir():
        return folder
    if looks_like_a_path(name):
        raise ConfigError(f"{key}: no folder {name!r}")
    return None


PathText = Annotated[str, AfterValidator(expand)]
