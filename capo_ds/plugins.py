"""Parts by name: those that ship (`capo_ds.parts`), and a user's own as `file.py:NAME`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Collection, Mapping
from functools import cache, partial, reduce
from pathlib import Path
from types import ModuleType
from typing import Any

from capo_ds.config import ConfigError, resolve_path
from capo_ds.options import check_options
from capo_ds.own_code import as_it_was, place, remember
from capo_ds.parts import built_in, ships


def make_part(
    kind: str,
    key: str,
    name: str,
    options: Mapping[str, Any] | None = None,
    first: int = 0,
    given: Collection[str] = (),
    columns: bool = False,
) -> Callable[..., Any]:
    """The part that a key of the config names, with its options in it.

    A function is called with them by keyword; of a class, an object is made with them, once, and
    that is the part. Arguments and errors: see `find_part`.
    """
    part = find_part(kind, key, name, options, first, given, columns)
    target = part.func if isinstance(part, partial) else part
    if not isinstance(target, type):
        return part
    try:
        with as_it_was():
            return part()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the user's code may raise anything, sys.exit too
        told = f"{key}: {name} cannot be made: {what(error)}{place(error)}"
        raise ConfigError(told) from error


def find_part(
    kind: str,
    key: str,
    name: str,
    options: Mapping[str, Any] | None = None,
    first: int = 0,
    given: Collection[str] = (),
    columns: bool = False,
) -> Callable[..., Any]:
    """The function or class of a part, to be called with its options already in it.

    Args:
        kind: in `parts.BUILT_IN`.
        key: of the config, for messages; its options stand beside it.
        name: of the table, or `file.py:NAME`.
        options: as the config has them.
        first: how many of a function's first arguments are no options.
        given: arguments by name that are none either, a class's too.
        columns: a function's other arguments are columns of the data, as those of rewards.

    Raises:
        ConfigError: no such part, or options that it does not take.
    """
    if ships(kind, name):
        try:
            part = built_in(kind, name)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"{key}: {error}") from error
    else:
        part = named(key, name)
    values = check_options(options_key(key), name, part, options or {}, first, given, columns)
    return partial(part, **values) if values else part


def options_key(key: str) -> str:
    """The key of the options of the part that a key names."""
    section, _, last = key.rpartition(".")
    if last == "functions":
        return f"{key}.options"
    beside = "options" if last in ("name", "function") else f"{last}_options"
    return f"{section}.{beside}" if section else beside


def named(key: str, name: str) -> Callable[..., Any]:
    """What `file.py:NAME` names: a function, a class, or another object that can be called.

    Raises:
        ConfigError: no such file or name, or the file does not run.
    """
    path, separator, attribute = name.rpartition(":")
    if not separator or not path.endswith(".py"):
        raise ConfigError(f"{key}: {name!r} is not of the form file.py:function")
    file = resolve_path(key, path)
    remember(str(file.resolve()))
    try:
        with as_it_was():
            module = _load(file.resolve())
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # sys.exit in it too
        raise ConfigError(f"{key}: {file} does not run: {what(error)}{place(error)}") from error
    part = reduce(lambda owner, part: getattr(owner, part, None), attribute.split("."), module)
    if not callable(part):
        raise ConfigError(f"{key}: {file} has no function {attribute!r}")
    return part


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
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
