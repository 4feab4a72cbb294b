"""Values of a data set's row: nested ones by dots, and conversations."""

from __future__ import annotations

from typing import Any


def holds(row: dict[str, Any], name: str) -> bool:
    """Whether `value_at` finds something."""
    try:
        value_at(row, name)
    except ValueError:
        return False
    return True


def value_at(row: dict[str, Any], name: str) -> Any:
    """The column of that name, or what dots lead to: `reward_model.ground_truth`, `answers.0`.

    Raises:
        ValueError: there is no such thing.
    """
    if name in row:
        return row[name]
    value: Any = row
    for part in (name or "").split("."):
        try:
            value = value[int(part)] if isinstance(value, list | tuple) else value[part]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ValueError(f"column {name!r}: nothing at {part!r}") from error
    return value


def conversation(value: list[Any], name: str) -> list[dict[str, Any]]:
    """A list of messages, each with a role and a content, as TRL's and verl's data sets have it.

    Keys that are null (Parquet gives every message those of all) are left out.

    Raises:
        ValueError: it is no such list.
    """
    messages = []
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError(
                f"column {name!r} holds a list, but not of messages, each with role and content"
            )
        if not isinstance(message.get("content"), str):
            raise ValueError(
                f"column {name!r}: the content of a {message['role']} message is no text"
            )
        messages.append({key: part for key, part in message.items() if part is not None})
    if not messages:
        raise ValueError(f"column {name!r} is an empty list of messages")
    return messages


def last_words(messages: list[dict[str, Any]]) -> str:
    """What the user said last: the problem's own text."""
    said = [message["content"] for message in messages if message["role"] == "user"]
    return said[-1] if said else messages[-1]["content"]
