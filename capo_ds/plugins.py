"""A user's own functions, named in the config as `file.py:function`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Any

from capo_ds.config import ConfigError, resolve_path


@cache
def load_function(key: str, name: str) -> Callable[..., Any]:
    """The function that `file.py:function` names; the file is run once.

    key: of the config, for messages.

    Raises:
        ConfigError: no such file or function, or the file does not run.
    """
    path, separator, attribute = name.rpartition(":")
    if not separator or not path.endswith(".py"):
        raise ConfigError(f"{key}: {name!r} is not of the form file.py:function")
    file = resolve_path(key, path)
    spec = importlib.util.spec_from_file_location(f"capo_ds_user_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"{key}: {file} does not run: {what(error)}") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise ConfigError(f"{key}: {file} has no function {attribute!r}")
    return function


def what(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {error}"
