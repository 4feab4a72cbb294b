"""Settings read from YAML with command-line overrides, and their errors and reference in words.

An unknown key, a wrong type or a bad value raises `ConfigError`, whose text names the key, the
value and the remedy.
"""

from __future__ import annotations

import difflib
import json
import re
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
from capo_ds.config.text import decode, parse_value, parse_yaml
from capo_ds.parts import nearest

PACKAGE = Path(__file__).resolve().parents[1]
REPOSITORY = PACKAGE.parent
# Where ds_configs/ and launchers/ are: in the repository, or in the package that a wheel installs.
HOME = REPOSITORY if (REPOSITORY / "launchers" / "recipes").is_dir() else PACKAGE
RECIPES = HOME / "launchers" / "recipes"
BUILTIN = "builtin:"
BUILTIN_MODELS = {"builtin:tiny": PACKAGE / "assets" / "tiny"}


TOP_LEVEL = tuple(Config.model_fields)
BOOLEANS: dict[str, str] = dict.fromkeys(("true", "yes", "on", "1"), "true")
BOOLEANS |= dict.fromkeys(("false", "no", "off", "0"), "false")
WORD, SURE_WORD = 0.72, 0.85  # how like each other words are, of 1, that stand for each other


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
    return shipped("--config", "recipe", RECIPES, name)


def shipped(option: str, what: str, folder: Path, name: str) -> Path:
    """The YAML file of that name in a folder that ships. Raises `ConfigError`."""
    files = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    if name not in files:
        raise ConfigError(
            f"{option} {BUILTIN}{name}: no such {what} ships; there are {', '.join(files)}"
        )
    return files[name]


def parse_config(settings: dict[str, Any]) -> Config:
    """Validate settings as read from YAML. Raises `ConfigError`."""
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        told: dict[str, str] = {}  # of a value that may be of two types, what the first says
        for problem in error.errors():
            key = ".".join(_key(dict(problem)))
            told.setdefault(key, _explain(dict(problem)))
        raise ConfigError("\n".join(told.values())) from error


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
    places = " or in ".join(dict.fromkeys((str(Path.cwd()), str(HOME))))
    others = [file.relative_to(HOME).as_posix() for file in sorted(HOME.glob("ds_configs/*.json"))]
    there = f"; there are {', '.join(others)}" if key == "deepspeed" and others else ""
    raise ConfigError(f"{key}: no file {path!r} in {places}{there}")


def _apply_override(settings: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {override}: write it as key=value, e.g. capo.radius=0.5")
    *sections, name = key.strip().split(".")
    for section in sections:
        if not isinstance(settings.setdefault(section, {}), dict):
            raise ConfigError(f"--set {override}: {section} is a value, not a section")
        settings = settings[section]
    settings[name] = parse_value(value, f"--set {override}")


def _explain(problem: dict[str, Any]) -> str:
    """One pydantic error as `key: value; remedy`."""
    parts = _key(problem)
    location, key = [part for part in parts if not part.isdigit()], ".".join(parts)
    if problem["type"] == "extra_forbidden":
        return "\n".join(_unknown(key, location, problem["input"]))
    if isinstance(problem["input"], dict) and problem["type"] == "value_error":
        return problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "model_type":
        if problem["input"] is None:
            return f"{key}: a section without keys; write them below it, or remove the line"
        example = _example(location, problem["input"])
        return f"{key}: {problem['input']!r} is not a section; write its keys below it{example}"
    if problem["type"] == "invalid_key":
        return f"{key}: a key must be text; YAML reads on, off, yes, no and numbers as such"
    meaning = dict(_fields(Config)).get(".".join(location))
    hint = f" ({meaning.description})" if meaning else ""
    return f"{key}: bad value {problem['input']!r}; {first_lower(problem['msg'])}{hint}" + (
        _remedy(key, problem["type"], problem["input"], problem.get("ctx", {}))
    )


def _key(problem: dict[str, Any]) -> list[str]:
    """The parts of its key, without the type that pydantic names where there are several."""
    parts = [str(part) for part in problem["loc"]]
    if problem["type"] == "extra_forbidden":
        return parts
    return [part for part in parts if not re.fullmatch(r"str|int|float|list\[.*\]", part)]


def _example(location: list[str], value: Any) -> str:
    """An entry of a list that is written as the value of its first key."""
    first = {
        "reward.functions": "function",
        "evaluation.benchmarks": "name",
        "task.mixture": "name",
        "task": "name",
        "model": "path",
    }.get(".".join(location))
    if first is None or not isinstance(value, str):
        return ""
    return f", as {{{first}: {json.dumps(value)}}}"


def _remedy(key: str, kind: str, value: Any, told: dict[str, Any]) -> str:
    """What to write in place of a value of the wrong type, where that is plain."""
    if kind == "list_type":
        if value in (None, False, "none", "None", "null", ""):
            return "; for none, write []"
        return "" if isinstance(value, dict) else f"; write a list, [{value}]"
    if kind == "int_type" and (number := _whole(value)) is not None:
        return f"; write {number}"
    if kind == "bool_type" and str(value).lower() in BOOLEANS:
        return f"; write {BOOLEANS[str(value).lower()]}, without quotes"
    if kind not in ("string_type", "literal_error"):
        return ""
    if isinstance(value, bool):
        return "; YAML reads on, off, yes and no as true and false: put text in quotes"
    if isinstance(value, int | float | date | dict | list) and key != "deepspeed":
        return "; put it in quotes to make it text"
    if isinstance(value, str) and (
        word := nearest(value, re.findall(r"'([^']+)'", told.get("expected", "")))
    ):
        return f"; did you mean {word}?"
    return ""


def _whole(value: Any) -> int | None:
    """The whole number that a value says in other words: 1e3, 100.0, '100'."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return int(number) if not isinstance(value, bool) and number.is_integer() else None


def first_lower(message: str) -> str:
    message = message.removeprefix("Value error, ")
    return message[0].lower() + message[1:]


def _unknown(key: str, location: list[str], value: Any) -> Iterator[str]:
    """What to write in place of an unknown key; of a section of another library, of each of its
    own."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _unknown(f"{key}.{name}", [*location, str(name)], inner)
    else:
        yield f"{key}: unknown key (value {value!r}); {_did_you_mean(location)}"


def _did_you_mean(location: list[str]) -> str:
    *sections, name = location
    if "." in name:  # in a file, where a dot says nothing
        parts = [*sections, *name.split(".")]
        if ".".join(parts) not in dict(_fields(Config)):
            return f"{_did_you_mean(parts)} (keys are nested in a file: no dots in them)"
        section, _, rest = name.partition(".")
        return (
            f"keys are nested: write `{section}:`, and in the lines below it, indented, `{rest}:`"
        )
    if told := elsewhere_called(location):
        return told
    known = [key for key, _ in _fields(Config)]
    prefix = ".".join([*sections, ""])
    siblings = [key for key in known if key.startswith(prefix)] if sections else [*TOP_LEVEL]
    if close := closest(name, siblings, WORD):
        return f"did you mean {close}?"
    if alike := [key for key in known if key.rpartition(".")[2] == name]:
        nearer = [key for key in alike if key.split(".")[0] in sections]
        return f"did you mean {' or '.join(nearer or alike)}?"
    if close := closest(name, known, SURE_WORD):
        return f"did you mean {close}?"
    for depth in range(len(sections), 0, -1):  # such as reward_model, whatever is in it
        if told := elsewhere_called(sections[:depth]):
            return told
    if siblings:
        return f"known keys: {', '.join(siblings)}"
    return "there is no such setting here; remove it"


def closest(name: str, keys: list[str], alike: float) -> str | None:
    """The key whose last word is most like the name."""
    words = {key.rpartition(".")[2]: key for key in reversed(keys)}
    found = difflib.get_close_matches(name, words, n=1, cutoff=alike)
    return words[found[0]] if found else None


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
