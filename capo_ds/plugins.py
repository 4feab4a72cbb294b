"""A user's own functions, named in the config as `file.py:function`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from functools import cache, reduce
from pathlib import Path
from types import ModuleType
from typing import Any

from capo_ds.config import ConfigError, resolve_path

MARK = ".py:"  # in the name of a part that the user brings


@cache
def load_function(key: str, name: str) -> Callable[..., Any]:
    """What `file.py:function` names: a function, or any other object that can be called.

    A class is called without arguments, once, and its object is what is called from then on.
    key: of the config, for messages.

    Raises:
        ConfigError: no such file or function, or the file does not run.
    """
    path, separator, attribute = name.rpartition(":")
    if not separator or not path.endswith(".py"):
        raise ConfigError(f"{key}: {name!r} is not of the form file.py:function")
    file = resolve_path(key, path)
    try:
        module = _load(file.resolve())
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # sys.exit in it too
        raise ConfigError(f"{key}: {file} does not run: {what(error)}") from error
    function = reduce(lambda owner, part: getattr(owner, part, None), attribute.split("."), module)
    if isinstance(function, type):
        function = _made(key, name, function)
    if not callable(function):
        raise ConfigError(f"{key}: {file} has no function {attribute!r}")
    return function


@cache
def _made(key: str, name: str, kind: type) -> Any:
    try:
        return kind()
    except Exception as error:
        raise ConfigError(
            f"{key}: the class of {name} is made without arguments, but: {what(error)}; make an "
            "object of it in the file, and name that"
        ) from error


@cache
def _load(file: Path) -> ModuleType:
    """Run a file once in this process, whatever paths name it.

    It is a module like any other: of its own name where no other module has it, so that its
    classes can be pickled and its neighbours can be imported, as from a script. While it runs,
    its folder comes first among the places of modules, and afterwards last.
    """
    root, parts = file.parent, [file.stem]
    while (root / "__init__.py").is_file():  # inside a package, whose relative imports must work
        root, parts = root.parent, [root.name, *parts]
    name = ".".join(parts)
    for module in list(sys.modules.values()):
        if _is_of(module, file) and module.__name__ != "__main__":
            return module
    taken = len(parts) == 1 and ("." in name or importlib.util.find_spec(name) is not None)
    sys.path.insert(0, str(root))
    try:
        if len(parts) > 1:
            return importlib.import_module(name)
        if taken:
            name = f"user_{hashlib.blake2b(str(file).encode(), digest_size=4).hexdigest()}"
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec and spec.loader  # as every file whose name ends with .py has them
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses and pickle look there
        try:
            spec.loader.exec_module(module)
        except BaseException:
            sys.modules.pop(name, None)
            raise
        return module
    finally:
        sys.path.remove(str(root))
        if str(root) not in sys.path:
            sys.path.append(str(root))


def _is_of(module: Any, file: Path) -> bool:
    place = vars(module).get("__file__") if isinstance(module, ModuleType) else None
    return place is not None and Path(place).name == file.name and Path(place).resolve() == file


def what(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {error}"
