"""Settings read from YAML with command-line overrides, and their errors and reference in words.

An unknown key, a wrong type or a bad value raises `ConfigError`, whose text names the key, the
value and the remedy.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from capo_ds.config.settings import Config, Section

PACKAGE = Path(__file__).resolve().parents[1]
REPOSITORY = PACKAGE.parent
# Where ds_configs/ and launchers/ are: in the repository, or in the package that a wheel installs.
HOME = REPOSITORY if (REPOSITORY / "launchers" / "recipes").is_dir() else PACKAGE
RECIPES = HOME / "launchers" / "recipes"
BUILTIN = "builtin:"
BUILTIN_MODELS = {"builtin:tiny": PACKAGE / "assets" / "tiny"}


class ConfigError(ValueError):
    """A setting that cannot be used; the text names key, value and remedy."""


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
        settings = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"cannot read the config {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
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
        raise ConfigError("\n".join(_explain(problem) for problem in error.errors())) from error


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
    try:
        settings[name] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: {value!r} is not a YAML value") from error


def _explain(problem: dict[str, Any]) -> str:
    """One pydantic error as `key: value; remedy`."""
    location = [part for part in problem["loc"] if isinstance(part, str)]
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key (value {problem['input']!r}); {_did_you_mean(location)}"
    if isinstance(problem["input"], dict) and problem["type"] == "value_error":
        return problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "model_type":
        return f"{key}: {problem['input']!r} is not a section; write its keys below it"
    meaning = dict(_fields(Config)).get(".".join(location))
    hint = f" ({meaning.description})" if meaning else ""
    return f"{key}: bad value {problem['input']!r}; {_first_lower(problem['msg'])}{hint}"


def _first_lower(message: str) -> str:
    message = message.removeprefix("Value error, ")
    return message[0].lower() + message[1:]


def _did_you_mean(location: list[str]) -> str:
    *section, name = location
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
        for inner in filter(_is_section, (field.annotation, *get_args(field.annotation))):
            yield from _fields(inner, f"{prefix}{name}.")


def _is_section(annotation: Any) -> bool:
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
