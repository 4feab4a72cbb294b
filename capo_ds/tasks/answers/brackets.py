"""Whatever is bracketed: groups, tuples, intervals, sets, matrices, absolute values."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from capo_ds.tasks.answers.nodes import INFINITY, Node, symbol
from capo_ds.tasks.answers.values import (
    Collection,
    Expression,
    Interval,
    Labelled,
    Matrix,
    Tuple,
    Unreadable,
    Value,
)

if TYPE_CHECKING:
    from capo_ds.tasks.answers.grammar import Parser

_PAIRS = {"langle": "rangle", "lfloor": "rfloor", "lceil": "rceil", "{": "}", "|": "|"}
_MATRICES = {"pmatrix", "bmatrix", "array", "matrix", "smallmatrix", "Bmatrix"}
REALS = Interval(Node("neg", (INFINITY,)), INFINITY, False, False)


def as_value(item: Node | Value) -> Value:
    return Expression(item) if isinstance(item, Node) else item


def items(parser: Parser, *closing: str) -> tuple[list[Node | Value], str]:
    """Statements separated by commas up to a closing bracket, and that bracket."""
    from capo_ds.tasks.answers.statements import statement

    bars, parser.bars = parser.bars, 0
    functions, parser.in_function = parser.in_function, 0
    found: list[Node | Value] = [statement(parser)]
    joints = set()
    while joint := parser.accept(",", ";"):
        joints.add(joint)
        found.append(statement(parser))
    if len(joints) > 1:
        raise Unreadable("commas and semicolons in one bracket")
    closed = parser.accept(*closing)
    if closed is None:
        raise Unreadable(f"no bracket closes before {parser.next.text or 'the end'!r}")
    parser.bars, parser.in_function = bars, functions
    return found, closed


def group_items(parser: Parser) -> list[Node | Value]:
    """Of a function's brackets."""
    opening = parser.accept("(", "[")
    return items(parser, ")" if opening == "(" else "]")[0]


def bracketed(parser: Parser) -> Node | Value:
    is_command = parser.next.kind == "command"
    opening = parser.next.text
    parser.position += 1
    if opening == "{" and is_command:
        return _braced(parser)
    if opening == "{":
        return _group(parser)
    if opening == "|":
        return _absolute(parser)
    if opening in _PAIRS:
        found, _ = items(parser, _PAIRS[opening])
        if opening == "langle":
            return Tuple(tuple(map(as_value, found)))
        return Node("floor" if opening == "lfloor" else "ceil", (_only(found),))
    return _round_or_square(parser, opening)


def _group(parser: Parser) -> Node | Value:
    """LaTeX's own braces, which are not seen."""
    from capo_ds.tasks.answers.statements import statement

    inner = statement(parser)
    parser.expect("}")
    return _unwrapped(inner)


def _unwrapped(value: Node | Value) -> Node | Value:
    """An expression as the node that can be calculated with."""
    return value.node if isinstance(value, Expression) else value


def _braced(parser: Parser) -> Value:
    if parser.accept("}"):
        return Collection((), braced=True)
    start = parser.position, parser.bars, parser.in_function
    if (value := _given_by_condition(parser)) is not None:
        return value
    parser.position, parser.bars, parser.in_function = start
    found, _ = items(parser, "}")
    return Collection(tuple(map(as_value, found)), braced=True)


def _given_by_condition(parser: Parser) -> Value | None:
    r"""The values of {x | x > 2} or {x \in \mathbb{R} | x > 2}; None of what is read otherwise,
    such as {x|y|, 3}."""
    parser.bars += 1  # or the bar would begin an absolute value
    first = parser.sum()
    is_letter = isinstance(first, Node) and first.head == "sym"
    if is_letter and parser.accept("in") and parser.sum() != REALS:
        return None
    parser.bars -= 1
    if parser.accept(":"):
        return _condition(parser, first)
    if is_letter and parser.accept("|"):
        with suppress(Unreadable):
            return _condition(parser, first)
    return None


def _condition(parser: Parser, label: Node | Value) -> Value:
    from capo_ds.tasks.answers.statements import statement

    condition = statement(parser)
    parser.expect("}")
    if not isinstance(condition, Labelled) or condition.label != label:
        raise Unreadable("a set given by a condition")
    value = condition.value
    return Collection((value,), braced=True) if isinstance(value, Expression) else value


def _absolute(parser: Parser) -> Node:
    parser.bars += 1
    inner = _only([parser.sum()])
    parser.expect("|")
    parser.bars -= 1
    return Node("abs", (inner,))


def _round_or_square(parser: Parser, opening: str) -> Node | Value:
    found, closing = items(parser, ")", "]")
    if len(found) == 1:
        if (opening == "(") != (closing == ")"):
            raise Unreadable("brackets of two kinds around one value")
        return _unwrapped(found[0])
    if (opening, closing) == ("(", ")"):
        return Tuple(tuple(map(as_value, found)))
    if len(found) != 2 or not all(isinstance(item, Node | Expression) for item in found):
        raise Unreadable("square brackets around what is no interval")
    low, high = (_only([item]) for item in found)
    return Interval(low, high, opening == "[", closing == "]")


def _only(found: list[Node | Value]) -> Node:
    from capo_ds.tasks.answers.grammar import plain

    if len(found) != 1:
        raise Unreadable("several values where one should stand")
    return plain(found[0])


def matrix(parser: Parser) -> Value:
    name = parser.next.text
    if name not in _MATRICES:
        raise Unreadable(f"{name!r} is none of an answer's environments")
    parser.position += 1
    rows: list[list[Node]] = [[]]
    while True:
        rows[-1].append(_only([parser.sum()]))
        if parser.accept("&"):
            continue
        if parser.accept("\\\\") and parser.next.kind != "end":
            rows.append([])
            continue
        break
    if parser.next.kind != "end" or parser.next.text != name:
        raise Unreadable("a matrix that does not end")
    parser.position += 1
    if len({len(row) for row in rows}) != 1:
        raise Unreadable("rows of different lengths")
    return Matrix(tuple(map(tuple, rows)))


def named(parser: Parser, name: str) -> Node | Value:
    r"""What a command alone stands for: \emptyset, \angle ABC, \overline{AB}, \mathbb{R}."""
    if name == "emptyset":
        return Collection((), braced=True)
    if name == "mathbb":
        if [parser.after(offset).text for offset in range(3)] != ["{", "R", "}"]:
            raise Unreadable("a set of numbers by its letter")
        parser.position += 3
        return REALS
    if name in ("angle", "triangle"):
        letters = []
        while parser.next.kind == "letters" and len(letters) < 3:
            letters.append(parser.next.text)
            parser.position += 1
        return symbol(f"{name} {''.join(letters)}")
    if name in ("overline", "vec", "hat", "bar", "widehat"):
        parser.expect("{")
        letters = ""
        while not parser.accept("}"):
            if parser.next.kind != "letters":
                raise Unreadable(f"a {name} over more than letters")
            letters += parser.next.text
            parser.position += 1
        return symbol(f"{name} {letters}")
    raise Unreadable(f"the command {name!r} is none of an answer's")
