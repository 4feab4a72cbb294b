"""What one side of a comparison tells of how the other is meant."""

from __future__ import annotations

import re
from contextlib import suppress

from capo_ds.tasks.answers.reader import read
from capo_ds.tasks.answers.values import (
    Collection,
    Expression,
    Labelled,
    Quantity,
    Unreadable,
    Value,
)

_LETTER = re.compile(r"(?<=[0-9)}])(\s+)([mgslhL])(?=\^|/|$)")


def read_like(expected: Value, given: str) -> Value:
    """The answer, its commas and a letter behind a number (5 m) read as the reference has them."""
    answer = read(given)
    inner = expected.value if isinstance(expected, Labelled) else expected
    if isinstance(inner, Collection) and not isinstance(answer, Collection):
        parts = read(given, thousands=False)
        return parts if isinstance(parts, Collection) else answer
    if isinstance(inner, Quantity) and isinstance(answer, Expression):
        return _lettered(given)
    return answer


def with_unit_of(answer: Value, expected: Value, reference: str) -> Value:
    """The reference, where it is a number with a letter (5 m) that stands for the answer's unit
    (5 meters), as the quantity that it then is."""
    inner = answer.value if isinstance(answer, Labelled) else answer
    if not isinstance(inner, Quantity) or not isinstance(expected, Expression):
        return expected
    with suppress(Unreadable):
        meant = _lettered(reference)
        if (
            isinstance(meant, Quantity)
            and meant.unit == inner.unit
            and meant.value.kind == "number"
        ):
            return meant
    return expected


def _lettered(text: str) -> Value:
    """The value, a letter that is a unit's symbol and stands behind a number read as the unit."""
    return read(_LETTER.sub(r" \\text{\2}", text.strip()))
