"""Values of a data set's row: nested ones by dots, and conversations."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from capo_ds.tasks.files import exact_text

MEDIA = ("image", "images", "video", "videos", "audio", "audios")
MESSAGE_KEYS = ({"role", "content"}, {"from", "value"})


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


def check_media(row: dict[str, Any]) -> None:
    """Raises `ValueError` for a row with an image or the like, which no text model would see."""
    for name in MEDIA:
        if row.get(name):
            raise ValueError(
                f"column {name!r} holds what the model would not see: it reads text alone; take "
                "problems without it, or, where the text says all, leave the column out"
            )


def decoded(value: Any) -> Any:
    """A conversation that is stored as the text of its JSON, or of its Python (as pandas writes a
    list into a CSV file); any other value as it is.

    Raises:
        ValueError: it begins as one, but cannot be read.
    """
    if not isinstance(value, str) or not re.match(r"\s*\[\s*\{", value):
        return value
    for read in (json.loads, ast.literal_eval):
        try:
            messages = read(value)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            continue
        are = all(
            isinstance(message, dict) and any({*message} >= keys for keys in MESSAGE_KEYS)
            for message in messages
        )
        return messages if are else value
    begins = re.match(r"\s*\[\s*\{\s*(['\"])(role|content)\1\s*:", value)
    if begins and value.rstrip().endswith("]"):
        raise ValueError(
            f"holds what looks like messages, {value[:40]!r}..., but is neither JSON nor a list of "
            "Python's; store them as JSON, or in Parquet as a list"
        )
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
                + (" (rename from and value)" if "from" in message and "value" in message else "")
            )
        content = _in_one(message.get("content"))
        if content is None and message.get("tool_calls"):  # which then are all that it says
            content = ""
        if not isinstance(content, str):
            raise ValueError(
                f"column {name!r}: a message of role {message['role']!r} has no text as content"
            )
        exact_text(content or "-")
        kept = {key: part for key, part in message.items() if part is not None}
        messages.append(kept | {"content": content})
    if not messages:
        raise ValueError(f"column {name!r} is an empty list of messages")
    return messages


def _in_one(content: Any) -> Any:
    """A content in parts, all of them text, as one text; any other as it is."""
    if not isinstance(content, list) or not content:
        return content
    found = [part.get("text") for part in content if isinstance(part, dict)]
    texts = [text for text in found if isinstance(text, str)]
    return "".join(texts) if len(texts) == len(content) else content


def template_arguments(row: dict[str, Any]) -> dict[str, Any]:
    """What a row gives its chat template beside the messages, as TRL's data sets have it: the
    columns `tools` (a list of JSON schemas) and `chat_template_kwargs`, or the text of their JSON.

    Keys that are null (Parquet gives every tool those of all) are left out. Other things of these
    names are a task's own.
    """
    tools, more = (_from_json(row.get(name)) for name in ("tools", "chat_template_kwargs"))
    given = dict(_without_nulls(more)) if isinstance(more, dict) else {}
    if isinstance(tools, list) and tools and all(isinstance(tool, dict) for tool in tools):
        given["tools"] = _without_nulls(tools)
    return given


def _from_json(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value


def last_words(messages: list[dict[str, Any]]) -> str:
    """What the user said last: the problem's own text."""
    said = [message["content"] for message in messages if message["role"] == "user"]
    return said[-1] if said else messages[-1]["content"]
