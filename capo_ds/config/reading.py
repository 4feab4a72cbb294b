"""Settings read from YAML with command-line overrides, and their errors and reference in words.

An unknown key, a wrong type or a bad value raises `ConfigError`, whose text names the key, the
value and the remedy.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeGuard, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from capo_ds.config.errors import ConfigError
from capo_ds.config.foreign import elsewhere_called
from capo_ds.config.paths import expand
from capo_ds.config.section import Section
from capo_ds.config.settings import Config
from capo_ds.config.text import decode, parse_yaml

PACKAGE = Path(__file__).resolve().parents[1]
REPOSITORY = PACKAGE.parent
# Where ds_configs/ and launchers/ are: in the repository, or in the package that a wheel installs.
HOME = REPOSITORY if (REPOSITORY / "launchers" / "recipes").is_dir() else PACKAGE
RECIPES = HOME / "launchers" / "recipes"
BUILTIN = "builtin:"
BUILTIN_MODELS = {"builtin:tiny": PACKAGE / "assets" / "tiny"}


TOP_LEVEL = tuple(Config.model_fields)


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read a YAML file, apply `key.path=value` overrides (values are YAML) and validate.

    path: of the file, or `builtin:NAME` for a recipe that ships.

    Raises:
        ConfigError: on a missing file, bad YAML, an unknown key, a wrong type or a bad value.
    """
    if str(path).startswith(BUILTIN):
        path = recipe(str(path).removeprefix(BUILTIN))
    try:
        content = Path(expand(str(path))).read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the config {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"cannot read the config {path}: {error}") from error
    settings = parse_yaml(decode(content, str(path)), str(path))
    settings = {} if settings is None else settings
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}: expected `key: value` lines, found {type(settings).__name__}")
    for override in overrides or []:
        _apply_override(settings, override)
    return parse_config(settings)


def recipe(name: str) -> Path:
    """The file of a recipe that ships. Raises `ConfigError` if there is none of that name."""
    recipes = {path.stem: path for path in sorted(RECIPES.glob("*.yaml"))}
    if name not in recipes:
        raise ConfigError(
            f"--config {BUILTIN}{name}: no such recipe ships; there are {', '.join(recipes)}"
        )
    return recipes[name]


def parse_config(settings: dict[str, Any]) -> Config:
    """Validate settings as read from YAML. Raises `ConfigError`."""
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(
            "\n".join(_explain(dict(problem)) for problem in error.errors())
        ) from error


def config_reference() -> str:
    """One line per key: name, type, default and meaning, for `--help` and the docs."""
    lines = []
    for key, field in _fields(Config):
        default = (
            "required"
            if field.is_required()
            else f"default {json.dumps(field.default, default=Section.model_dump)}"
        )
        lines.append(f"{key} ({_type_name(field.annotation)}, {default})")
        lines.append(f"    {field.description}")
    return "\n".join(lines)


def resolve_path(key: str, path: str) -> Path:
    """The file that a key names: relative to the current folder, or else to what ships.

    Raises:
        ConfigError: if it is in neither.
    """
    for candidate in (Path(path), HOME / path):
        if candidate.is_file():
            return candidate
    raise ConfigError(f"{key}: no file {path!r} in {Path.cwd()} or in {HOME}")


def _apply_override(settings: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {override}: write it as key=value, e.g. capo.radius=0.5")
    *sections, name = key.strip().split(".")
    for section in sections:
        if not isinstance(settings.setdefault(section, {}), dict):
            raise ConfigError(f"--set {override}: {section} is a value, not a section")
        settings = settings[section]
    settings[name] = parse_yaml(value, f"--set {override}")


def _explain(problem: dict[str, Any]) -> str:
    """One pydantic error as `key: value; remedy`."""
    location = [part for part in problem["loc"] if isinstance(part, str)]
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key (value {problem['input']!r}); {_did_you_mean(location)}"
    if isinstance(problem["input"], dict) and problem["type"] == "value_error":
        return problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "model_type":
        if problem["input"] is None:
            return f"{key}: a section without keys; write them below it, or remove the line"
        return f"{key}: {problem['input']!r} is not a section; write its keys below it"
    if problem["type"] == "invalid_key":
        return f"{key}: a key must be text; YAML reads on, off, yes, no and numbers as such"
    meaning = dict(_fields(Config)).get(".".join(location))
    hint = f" ({meaning.description})" if meaning else ""
    return f"{key}: bad value {problem['input']!r}; {_first_lower(problem['msg'])}{hint}" + (
        _unquoted(problem)
    )


def _unquoted(problem: dict[str, Any]) -> str:
    """What YAML makes of words that look like other things, where text was asked for."""
    if problem["type"] not in ("string_type", "literal_error"):
        return ""
    if isinstance(problem["input"], bool):
        return "; YAML reads on, off, yes and no as true and false: put text in quotes"
    if isinstance(problem["input"], int | float | date):
        return "; put it in quotes to make it text"
    return ""


def _first_lower(message: str) -> str:
    message = message.removeprefix("Value error, ")
    return message[0].lower() + message[1:]


def _did_you_mean(location: list[str]) -> str:
    *section, name = location
    if told := elsewhere_called(location):
        return told
    known = [key for key, _ in _fields(Config)]
    prefix = ".".join([*section, ""]) if section else ""
    siblings = [key for key in known if key.startswith(prefix)] if section else [*TOP_LEVEL]
    elsewhere = [key for key in known if key.rpartition(".")[2] == name]
    close = difflib.get_close_matches(".".join(location), siblings, n=1)
    if elsewhere or close:
        return f"did you mean {' or '.join(elsewhere or close)}?"
    return f"known keys: {', '.join(siblings)}"


def _fields(section: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key with its field; a list of sections is followed by the keys of its entries."""
    for name, field in section.model_fields.items():
        if not _is_section(field.annotation):
            yield f"{prefix}{name}", field
        for inner in (field.annotation, *get_args(field.annotation)):
            if _is_section(inner):
                yield from _fields(inner, f"{prefix}{name}.")


def _is_section(annotation: Any) -> TypeGuard[type[Section]]:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def _type_name(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return " | ".join("null" if part is NoneType else _type_name(part) for part in inner)
    if origin is Annotated:
        return _type_name(inner[0])
    if origin is Literal:
        return " | ".join(str(value) for value in inner)
    if inner:
        return f"{origin.__name__}[{', '.join(_type_name(part) for part in inner)}]"
    return annotation.__name__
