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
    problems = [] if takes_all else _unknown(key, name, options, known)
    needed = [option for option, parameter in known.items() if parameter.default is parameter.empty]
    filled = columns and not isinstance(part, type)
    missing = [option for option in needed if option not in options and not filled]
    problems += [f"{key}.{option}: {name} needs it, and it is not set" for option in missing]
    taken = {option: parameter for option, parameter in known.items() if option in options}
    values, bad = _checked_values(key, name, options, taken)
    if problems := [*problems, *bad]:
        raise ConfigError("\n".join(problems))
    return dict(options) | values


def _unknown(
    key: str, name: str, options: Mapping[str, Any], known: Mapping[str, inspect.Parameter]
) -> list[str]:
    """What is to be told of options that the part does not have."""
    told = []
    for option in options:
        if option not in known:
            close = difflib.get_close_matches(option, known, n=1)
            hint = f"did you mean {close[0]}? It" if close else "it"
            told.append(
                f"{key}.{option}: {name} has no such option; {hint} has "
                f"{', '.join(known) or 'none'}"
            )
    return told


def _checked_values(
    key: str, name: str, options: Mapping[str, Any], taken: Mapping[str, inspect.Parameter]
) -> tuple[dict[str, Any], list[str]]:
    """Of the options that the part names, in its types, and what is to be told of bad ones. Raises
    `ConfigError` for types that cannot be checked."""
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
        told: dict[Any, str] = {}  # of a value that may be of two types, what the first says
        for problem in error.errors():
            place = ".".join(str(part) for part in (key, *problem["loc"]))
            words = problem["msg"].removeprefix("Value error, ")
            told.setdefault(
                problem["loc"][:1],
                f"{place}: bad value {problem['input']!r} for {name}; "
                f"{words[0].lower() + words[1:]}",
            )
        return {}, [*told.values()]
    return {option: getattr(values, option) for option in fields}, []


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
