"""Options of a part, checked by the annotations of the function or class that takes them."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, get_type_hints

from pydantic import PydanticUserError, StrictBool, StrictInt, ValidationError, create_model

from capo_ds.config.errors import ConfigError
from capo_ds.config.section import Number, Section

# Types as the sections of the config have them: no texts for whole numbers, no flags for numbers.
STRICT = {float: Number, int: StrictInt, bool: StrictBool}


def check_options(
    key: str,
    name: str,
    part: Callable[..., Any],
    options: Mapping[str, Any],
    first: int = 0,
    given: Collection[str] = (),
    columns: bool = False,
) -> dict[str, Any]:
    """The options as the part takes them, in its types; those that are not set are left out.

    Args:
        key: of the options in the config, for messages.
        name: of the part, likewise.
        part: a function, or a class that is made with its options.
        options: as the config has them.
        first: how many of a function's first arguments are no options.
        given: arguments by name that are none either.
        columns: a function's other arguments are filled by the data set's columns.

    Raises:
        ConfigError: an option that the part does not have, or of another type; one that it needs is
            missing.
    """
    known, takes_all = _parameters(part, first, given)
    _check_names(key, name, options, known, takes_all)
    needed = [option for option, parameter in known.items() if parameter.default is parameter.empty]
    filled = columns and not isinstance(part, type)
    if missing := [option for option in needed if option not in options and not filled]:
        raise ConfigError(f"{key}.{missing[0]}: {name} needs it, and it is not set")
    taken = {option: parameter for option, parameter in known.items() if option in options}
    return dict(options) | _checked_values(key, name, options, taken)


def _check_names(
    key: str,
    name: str,
    options: Mapping[str, Any],
    known: Mapping[str, inspect.Parameter],
    takes_all: bool,
) -> None:
    """Raises `ConfigError` for an option that the part does not have."""
    if unknown := [option for option in options if option not in known and not takes_all]:
        close = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean {close[0]}? It" if close else "it"
        raise ConfigError(
            f"{key}.{unknown[0]}: {name} has no such option; {hint} has "
            f"{', '.join(known) or 'none'}"
        )


def _checked_values(
    key: str, name: str, options: Mapping[str, Any], taken: Mapping[str, inspect.Parameter]
) -> dict[str, Any]:
    """Of the options that the part names, in its types. Raises `ConfigError`."""
    fields: dict[str, Any] = {
        option: (_type(parameter), ...) for option, parameter in taken.items()
    }
    try:
        section = create_model("Options", __base__=Section, **fields)
    except (PydanticUserError, TypeError) as error:
        raise ConfigError(
            f"{key}: the annotations of {name}'s options cannot be checked: {error}; use "
            "plain types, or leave them out"
        ) from error
    try:
        values = section.model_validate({option: options[option] for option in fields})
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in (key, *problem["loc"]))
        told = problem["msg"].removeprefix("Value error, ")
        raise ConfigError(
            f"{place}: bad value {problem['input']!r} for {name}; {told[0].lower() + told[1:]}"
        ) from error
    return {option: getattr(values, option) for option in fields}


def _parameters(
    part: Callable[..., Any], first: int, given: Collection[str]
) -> tuple[dict[str, inspect.Parameter], bool]:
    """The options that a part has, with their annotations resolved, and whether it takes any."""
    try:
        parameters = list(inspect.signature(part).parameters.values())
    except (TypeError, ValueError):  # of some that are written in C
        return {}, True
    maker = part.__init__ if isinstance(part, type) else part
    try:
        hints = get_type_hints(maker, include_extras=True)
    except (NameError, TypeError):  # names that are imported for type checkers only; partials
        hints = {}
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    if not isinstance(part, type):
        parameters = parameters[first:]
    options = {
        p.name: p.replace(annotation=hints.get(p.name, p.annotation))
        for p in parameters
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in given
    }
    return options, takes_all


def _type(parameter: inspect.Parameter) -> Any:
    """What an option's value must be: its annotation, or else the type of its default."""
    kind = parameter.annotation
    if isinstance(kind, str) or kind is parameter.empty:
        kind = type(parameter.default) if parameter.default not in (None, parameter.empty) else Any
    return STRICT.get(kind, kind) if isinstance(kind, type) else kind
