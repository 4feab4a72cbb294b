"""Calling a user's reward functions, as TRL does, and reading what they return."""

from __future__ import annotations

import asyncio
import inspect
import math
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence, Set
from functools import cache
from itertools import islice
from typing import Any

from capo_ds.config import ConfigError
from capo_ds.own_code import PartError, as_it_was
from capo_ds.plugins import what
from capo_ds.tasks.base import Problem

RewardFunction = Callable[..., Any]
OURS = ("prompts", "completions", "completion_ids", "references", "verdicts")
# What other trainers call them, or give one at a time.
THEIRS = {
    "references": "ground_truth answer answers solution solutions label labels target targets",
    "completions": "solution_str completion response responses output outputs queries",
    "prompts": "prompt question questions prompt_str",
}
MEANT = {word: name for name, words in THEIRS.items() for word in words.split()}


def check_arguments(functions: Mapping[str, RewardFunction], columns: Iterable[str]) -> None:
    """Raises `ConfigError` for a function with an argument that nothing fills.

    columns: of the data sets.
    """
    known = {*OURS, *columns}
    for name, function in functions.items():
        needed, _ = _arguments(function)
        if missing := sorted(needed - known):
            meant = [f"{MEANT[word]} for {word}" for word in missing if word in MEANT]
            did_you = (
                f"did you mean {', '.join(meant)} (lists, all of them)? else " if meant else ""
            )
            if "self" in missing:
                did_you = "name the method of an object (model = Model(), then file.py:model.f); "
            raise ConfigError(
                f"reward.functions: {name} needs {', '.join(missing)}, which is no column of the "
                f"data and none of {', '.join(OURS)}; {did_you}give it a default, or take it out "
                f"(columns: {', '.join(sorted(set(columns))) or 'none'})"
            )
        if by_place := _by_place_only(function, known):
            raise ConfigError(
                f"reward.functions: {name} takes {', '.join(by_place)} by place alone; arguments "
                "are given by name: name those that it needs (completions, ...), without / or *"
            )


def call_all(
    functions: Mapping[str, RewardFunction],
    completions: Sequence[str],
    problems: Sequence[Problem],
    completion_ids: Sequence[Sequence[int]],
    columns: Iterable[str],
    verdicts: Sequence[Any] = (),
) -> dict[str, list[float | None]]:
    """Each function's rewards; those that are asynchronous run at the same time.

    Raises:
        PartError: a function failed, or returned what is no list of rewards.
    """
    if not problems:  # a rank without prompts in this step
        return {name: [] for name in functions}
    returned: dict[str, Any] = {}
    for name, function in functions.items():
        everything = _keywords(completions, problems, completion_ids, columns)
        everything["verdicts"] = list(verdicts)
        for option in getattr(function, "keywords", ()):  # before a column of its name
            everything.pop(option, None)
        takes_all = _arguments(function)[1]
        accepted = everything if takes_all else _accepted(function, everything)
        returned[name] = _guarded(name, lambda f=function, given=accepted: f(**given))
    waiting = {name: value for name, value in returned.items() if inspect.isawaitable(value)}
    if waiting:
        with as_it_was():
            returned |= _loop().run_until_complete(_finish(waiting))
    return {name: _read(name, returned[name], len(completions)) for name in functions}


def _keywords(
    completions: Sequence[str],
    problems: Sequence[Problem],
    completion_ids: Sequence[Sequence[int]],
    columns: Iterable[str],
) -> dict[str, list[Any]]:
    """Lists by keyword, one per column of the data set; a column cannot take the place of ours.

    Where the data set holds conversations, prompts and completions are lists of messages. What a
    function does to its lists changes no problem.
    """
    given = {name: [_own(problem.columns.get(name)) for problem in problems] for name in columns}
    given["prompts"] = [_own(problem.messages or problem.prompt) for problem in problems]
    given["completions"] = [
        [{"role": "assistant", "content": text}] if problem.messages else text
        for text, problem in zip(completions, problems, strict=True)
    ]
    given["completion_ids"] = [list(ids) for ids in completion_ids]
    given["references"] = [problem.answer for problem in problems]
    return given


def _own(value: Any) -> Any:
    """A copy of lists and dicts, of those in them too."""
    if isinstance(value, dict):
        return {name: _own(part) for name, part in value.items()}
    return [_own(part) for part in value] if isinstance(value, list) else value


def _by_place_only(function: RewardFunction, known: Set[str]) -> list[str]:
    """Arguments that cannot be given by name, where there is no other way to give them."""
    parameters = _parameters(function).values()
    given = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    starred = [f"*{p.name}" for p in parameters if p.kind is p.VAR_POSITIONAL]
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    if starred and not takes_all and given.isdisjoint(known):
        return starred
    return [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY and p.default is p.empty]


def _arguments(function: RewardFunction) -> tuple[set[str], bool]:
    """The keywords that a function cannot do without, and whether it takes any."""
    parameters = _parameters(function).values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    needed = {p.name for p in named if p.default is p.empty}
    return needed, any(p.kind is p.VAR_KEYWORD for p in parameters)


def _accepted(function: RewardFunction, given: dict[str, Any]) -> dict[str, Any]:
    names = _parameters(function)
    return {name: value for name, value in given.items() if name in names}


def _parameters(function: RewardFunction) -> Mapping[str, inspect.Parameter]:
    """Of a torch module, whose `__call__` hands on what it gets, those of its forward pass."""
    torch: Any = sys.modules.get("torch")
    module = torch and isinstance(function, torch.nn.Module) and function
    if module and type(module).__call__ is torch.nn.Module.__call__:
        function = module.forward
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # of some that are written in C
        return {"any": inspect.Parameter("any", inspect.Parameter.VAR_KEYWORD)}


def _guarded(name: str, run: Callable[[], Any]) -> Any:
    try:
        with as_it_was():
            return run()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # sys.exit too, which would end the training without a word
        raise PartError(f"reward function {name}: {what(error)}") from error


async def _finish(waiting: dict[str, Awaitable[Any]]) -> dict[str, Any]:
    """What the awaitables give, run at the same time. Raises `PartError` for the first error."""

    async def result(name: str, value: Awaitable[Any]) -> Any:
        try:
            return await value
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise PartError(f"reward function {name}: {what(error)}") from error

    done = await asyncio.gather(
        *(result(name, value) for name, value in waiting.items()), return_exceptions=True
    )
    for value in done:
        if isinstance(value, BaseException):
            raise value
    return dict(zip(waiting, done, strict=True))


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """One for the whole run: a function's connections belong to the loop that opened them."""
    return asyncio.new_event_loop()


def _read(name: str, returned: Any, count: int) -> list[float | None]:
    """A list of numbers or None. Raises `PartError` for anything else."""
    kind, dimensions = type(returned).__name__, getattr(returned, "ndim", 1)
    if (
        isinstance(returned, str | bytes | Mapping | Set)
        or not isinstance(returned, Iterable)
        or dimensions != 1
    ):
        size = "" if dimensions == 1 else f" of {dimensions} dimensions"
        raise PartError(
            f"reward function {name}: it returned {_article(kind)} {kind}{size}; it must return a "
            f"list of {count} numbers, one a completion"
        )
    listed = getattr(returned, "tolist", None)  # of NumPy, torch, pandas
    rewards = listed() if listed else returned
    # A generator runs only now, and may have no end.
    given = _guarded(name, lambda: list(islice(iter(rewards), count + 1)))
    if len(given) != count:
        told = f"more than {count}" if len(given) > count else str(len(given))
        raise PartError(f"reward function {name}: {told} rewards for {count} completions")
    return [_number(name, index, value) for index, value in enumerate(given)]


def _article(kind: str) -> str:
    return "an" if kind[0] in "aeiouAEIOU" else "a"


def _number(name: str, index: int, value: Any) -> float | None:
    if value is None:
        return None
    try:
        if isinstance(value, str) or not hasattr(value, "__float__"):
            raise TypeError(f"a {type(value).__name__}")
        number = float(value)
    except Exception as error:  # numbers of the user's own among them
        raise PartError(
            f"reward function {name}: {value!r:.100} is no reward (of completion {index}); numbers "
            "are, and None where the function does not apply"
        ) from error
    if not math.isfinite(number):
        raise PartError(
            f"reward function {name}: {number} is no reward (of completion {index}); return None "
            "where the function does not apply"
        )
    return number
