"""Answers as a whole: a statement, or several side by side."""

from __future__ import annotations

from capo_ds.tasks.answers.brackets import REALS, as_value
from capo_ds.tasks.answers.cursor import END
from capo_ds.tasks.answers.grammar import Parser
from capo_ds.tasks.answers.nodes import INFINITY
from capo_ds.tasks.answers.statements import statement
from capo_ds.tasks.answers.values import (
    Collection,
    Expression,
    Interval,
    Labelled,
    Union,
    Unreadable,
    Value,
)


def answer(parser: Parser) -> Value:
    """All tokens: a statement, or a list of them.

    Raises:
        Unreadable: they are neither.
    """
    parts, joints, commas = [[as_value(statement(parser))]], set(), False
    while joint := parser.accept(",", ";", "and", "or"):
        joints.add(parser.accept("and", "or") or joint)
        commas = commas or joint == ","
        if joint == ";":
            parts.append([])
        parts[-1].append(as_value(statement(parser)))
    if parser.next is not END:
        raise Unreadable(f"{parser.next.text!r} after the answer's end")
    if commas and len(parts) > 1:
        return _side_by_side(parts)
    values = [value for part in parts for value in part]
    return values[0] if len(values) == 1 else _joined(values, joints)


def _side_by_side(parts: list[list[Value]]) -> Value:
    """Lists with semicolons between them, in their order; x=1,y=2; x=3,y=4 has none."""
    named = all(isinstance(value, Labelled) for part in parts for value in part)
    lists = (part[0] if len(part) == 1 else Collection(tuple(flattened(part))) for part in parts)
    return Collection(tuple(lists), ordered=not named)


def _joined(values: list[Value], joints: set[str]) -> Value:
    """x < 1 or x > 3 is a union, x > 1 and x < 3 an interval; all else a list."""
    regions = [region for value in values if (region := _region(value))]
    labels = {value.label for value in values if isinstance(value, Labelled)}
    if len(regions) == len(values) and len(labels) == 1:
        if joints == {"or"}:
            return Labelled(labels.pop(), Union(tuple(p for region in regions for p in region)))
        if joints == {"and"} and (both := _between(regions)):
            return Labelled(labels.pop(), both)
    return Collection(tuple(flattened(values)))


def _region(value: Value) -> tuple[Interval | Expression, ...] | None:
    inner = value.value if isinstance(value, Labelled) else None
    if isinstance(inner, Interval):
        return (inner,)
    return inner.pieces if isinstance(inner, Union) else None


def _between(regions: list[tuple[Interval | Expression, ...]]) -> Interval | None:
    """The interval that is bounded on either side by one of two half-lines."""
    if [len(region) for region in regions] != [1, 1]:
        return None
    for (first,), (second,) in (regions, regions[::-1]):
        if not (isinstance(first, Interval) and isinstance(second, Interval)):
            return None
        if first.high == INFINITY and second.low == REALS.low:
            return Interval(first.low, second.high, first.low_closed, second.high_closed)
    return None


def flattened(values: list[Value]) -> list[Value]:
    """Plus-minus within a list stands for two of its values."""
    found: list[Value] = []
    for value in values:
        if isinstance(value, Collection) and not value.braced:
            found.extend(value.items)
        else:
            found.append(value)
    return found
