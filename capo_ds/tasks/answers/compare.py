"""Comparison by the reference's type, with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatchmethod
from typing import TypeVar

from capo_ds.tasks.answers.latex import cleaned
from capo_ds.tasks.answers.nodes import (
    Node,
    TooLarge,
    leaves_arithmetic,
    rational,
    symbol,
    variables,
)
from capo_ds.tasks.answers.plain import parse_number
from capo_ds.tasks.answers.reader import as_words, read
from capo_ds.tasks.answers.readings import read_like, with_unit_of
from capo_ds.tasks.answers.statements import as_interval
from capo_ds.tasks.answers.times import moments
from capo_ds.tasks.answers.values import (
    Based,
    Chain,
    Collection,
    Expression,
    Interval,
    Labelled,
    Matrix,
    Quantity,
    Ratio,
    Relation,
    Text,
    Time,
    Tuple,
    Union,
    Unit,
    Unreadable,
    Value,
)
from capo_ds.tasks.outcome import Comparison, Outcome

Kind = TypeVar(
    "Kind", Expression, Tuple, Interval, Union, Collection, Matrix, Based, Ratio, Relation
)
SAME, OTHER = "the same value", "another value"
LEFT = "arithmetic is left to the reader, or another value"
EQUAL, DIFFERENT, UNPARSED = Comparison.EQUAL, Comparison.DIFFERENT, Comparison.UNPARSED


class Undecided(Exception):
    """Symbols must decide, in a child process."""


class Engine:
    """Equality of expressions where their form or exact rational values decide it."""

    def equal(self, x: Node, y: Node) -> bool:
        """Raises `Undecided`, `TooLarge`."""
        if x == y:
            return True
        left, right = rational(x), rational(y)
        if left is None or right is None:
            raise Undecided
        return left == right

    def proportional(self, x: Node, y: Node, positive: bool) -> bool:
        """Whether x is y times a constant other than 0. Raises `Undecided`."""
        if x == y:
            return True
        raise Undecided


class Mismatch(Exception):
    """Why two values differ."""


def compare_numbers(given: str, reference: str) -> Outcome | None:
    """What comes of two plain numbers, in microseconds; None where they are not two."""
    expected = parse_number(reference)
    answer = None if expected is None else parse_number(given)
    if answer is None:
        return None
    if answer == expected:
        return Outcome(EQUAL, SAME, "number", "number")
    return Outcome(DIFFERENT, OTHER, "number", "number")


def compare(given: str, reference: str, engine: Engine) -> Outcome:
    """What comes of an answer, with its reason.

    Raises:
        Undecided: the engine cannot tell.
    """
    try:
        expected = read(reference)
    except Unreadable as error:
        return _by_text(given, reference, f"the reference cannot be read: {error}")
    try:
        answer = read_like(expected, given)
    except Unreadable as error:
        return _by_text(given, reference, str(error), expected.kind)
    expected = with_unit_of(answer, expected, reference)
    kinds = (answer.kind, expected.kind)
    try:
        Comparer(engine, given).check(expected, answer)
    except Mismatch as mismatch:
        return Outcome(DIFFERENT, str(mismatch), *kinds)
    except (TooLarge, RecursionError) as error:
        return _by_text(given, reference, str(error), expected.kind)
    return Outcome(EQUAL, SAME, *kinds)


def _by_text(given: str, reference: str, why: str, kind: str = "") -> Outcome:
    if " ".join(given.split()) == " ".join(reference.split()):
        return Outcome(EQUAL, f"the same text ({why})", "", kind)
    return Outcome(UNPARSED, why, "", kind)


class Comparer:
    """Raises `Mismatch` where a value is not the reference's."""

    def __init__(self, engine: Engine, given: str):
        self.engine, self.given = engine, given

    def check(self, expected: Value, answer: Value) -> None:
        """Labels and units first, then by the reference's type."""
        if isinstance(answer, Chain):
            answer = self._last(answer)
        if isinstance(expected, Chain):
            expected = Expression(expected.sides[-1])
        if isinstance(expected, Labelled) or isinstance(answer, Labelled):
            return self._labelled(expected, answer)
        if isinstance(expected, Time) or isinstance(answer, Time):
            return self._times(expected, answer)
        if isinstance(expected, Quantity) or isinstance(answer, Quantity):
            return self._quantities(expected, answer)
        return self._by_type(expected, answer)

    def same(self, expected: Node, answer: Node) -> bool:
        """Equality of expressions, without arithmetic left to the reader."""
        if expected == answer:
            return True
        if not leaves_arithmetic(expected):
            # A number may be a fraction, a power or a root, but not sin 90 or sqrt 2 * sqrt 2.
            unread = rational(expected) is not None and rational(answer) is None
            if unread or leaves_arithmetic(answer):
                raise Mismatch(OTHER if variables(answer) else LEFT)
        return self.engine.equal(expected, answer)

    def matches(self, expected: Value, answer: Value) -> bool:
        try:
            self.check(expected, answer)
        except Mismatch:
            return False
        return True

    # ---------------------------------------------------------------- labels and units

    def _last(self, chain: Chain) -> Expression:
        """The last side of a chain of equations that hold."""
        for side in chain.sides[:-1]:
            if not self.engine.equal(side, chain.sides[-1]):
                raise Mismatch("an equation that does not hold")
        return Expression(chain.sides[-1])

    def _labelled(self, expected: Value, answer: Value) -> None:
        if isinstance(expected, Labelled) and isinstance(answer, Labelled):
            if expected.label == answer.label:
                return self.check(expected.value, answer.value)
            symbols = {expected.label.head, answer.label.head} == {"sym"}
            if symbols and not self._open(expected):
                raise Mismatch("another variable")
        if isinstance(expected, Labelled) and not isinstance(answer, Labelled | Relation):
            return self.check(expected.value, answer)
        if isinstance(expected, Labelled):
            relation = _relation(expected)
            if relation is None or len(_symbols(relation)) < 2:
                raise Mismatch(f"{answer.kind} where the reference is {expected.kind}")
            return self._relation(relation, answer)
        if isinstance(expected, Relation):
            return self._relation(expected, answer)
        return self.check(expected, answer.value if isinstance(answer, Labelled) else answer)

    @staticmethod
    def _open(expected: Labelled) -> bool:
        relation = _relation(expected)
        return relation is not None and len(_symbols(relation)) > 1

    def _quantities(self, expected: Value, answer: Value) -> None:
        """A unit may be left out on either side."""
        units = [v.unit for v in (expected, answer) if isinstance(v, Quantity)]
        if units[0] != units[-1]:
            raise Mismatch(f"the unit is {_told(units[-1])}, not {_told(units[0])}")
        inner = [v.value if isinstance(v, Quantity) else v for v in (expected, answer)]
        return self.check(*inner)

    def _times(self, expected: Value, answer: Value) -> None:
        """The half of the day may be left out on either side."""
        if not moments(answer):
            raise Mismatch(f"{answer.kind} where the reference is {expected.kind}")
        if not moments(expected) & moments(answer):
            raise Mismatch("another time of the day")

    # ---------------------------------------------------------------- by the reference's type

    @singledispatchmethod
    def _by_type(self, expected: Value, answer: Value) -> None:
        raise TypeError(type(expected))

    @_by_type.register
    def _text(self, expected: Text, answer: Value) -> None:
        words = as_words(cleaned(self.given)) if not isinstance(answer, Text) else answer.words
        if words != expected.words:
            raise Mismatch("other words")

    @_by_type.register
    def _expression(self, expected: Expression, answer: Value) -> None:
        if isinstance(answer, Based) and answer.base == 10 and answer.digits.isdigit():
            answer = read(answer.digits)
        if isinstance(answer, Text) and expected.node == symbol(answer.words.upper()):
            return  # (C) in words
        answer = _alike(expected, answer)
        if not self.same(expected.node, answer.node):
            raise Mismatch(OTHER)

    @_by_type.register
    def _tuple(self, expected: Tuple, answer: Value) -> None:
        if isinstance(answer, Interval) and (interval := as_interval(expected)):
            return self._interval(interval, answer)
        answer = _alike(expected, answer)
        self._in_order(expected.items, answer.items)

    @_by_type.register
    def _interval(self, expected: Interval, answer: Value) -> None:
        if isinstance(answer, Tuple):
            answer = as_interval(answer) or answer
        answer = _alike(expected, answer)
        if (expected.low_closed, expected.high_closed) != (answer.low_closed, answer.high_closed):
            raise Mismatch("other ends are closed")
        if not (self.same(expected.low, answer.low) and self.same(expected.high, answer.high)):
            raise Mismatch("other ends")

    @_by_type.register
    def _union(self, expected: Union, answer: Value) -> None:
        answer = _alike(expected, answer)
        self._in_any_order(expected.pieces, answer.pieces)

    @_by_type.register
    def _collection(self, expected: Collection, answer: Value) -> None:
        answer = _alike(expected, answer)
        if expected.ordered != answer.ordered:
            raise Mismatch(f"{answer.kind} where the reference is {expected.kind}")
        compared = self._in_order if expected.ordered else self._in_any_order
        compared(expected.items, answer.items)

    @_by_type.register
    def _matrix(self, expected: Matrix, answer: Value) -> None:
        answer = _alike(expected, answer)
        if list(map(len, expected.rows)) != list(map(len, answer.rows)):
            raise Mismatch("another shape")
        for row, other in zip(expected.rows, answer.rows, strict=True):
            if not all(self.same(x, y) for x, y in zip(row, other, strict=True)):
                raise Mismatch("other entries")

    @_by_type.register
    def _based(self, expected: Based, answer: Value) -> None:
        answer = _alike(expected, answer)
        if expected != answer:
            same = expected.base == answer.base
            raise Mismatch("other digits" if same else "another base")

    @_by_type.register
    def _ratio(self, expected: Ratio, answer: Value) -> None:
        answer = _alike(expected, answer)
        self._in_order(*(tuple(map(Expression, v.parts)) for v in (expected, answer)))

    @_by_type.register
    def _relation(self, expected: Relation, answer: Value) -> None:
        if isinstance(answer, Labelled):
            answer = _relation(answer) or answer
        answer = _alike(expected, answer)
        if expected == answer:
            return
        if expected.operator != answer.operator:
            raise Mismatch("another relation")
        positive = expected.operator not in ("=", "ne")
        if not self.engine.proportional(_difference(expected), _difference(answer), positive):
            raise Mismatch("another relation between the variables")

    # ---------------------------------------------------------------- parts

    def _in_order(self, expected: Sequence[Value], answer: Sequence[Value]) -> None:
        if len(expected) != len(answer):
            raise Mismatch(f"{len(answer)} values where the reference has {len(expected)}")
        for x, y in zip(expected, answer, strict=True):
            self.check(x, y)

    def _in_any_order(self, expected: Sequence[Value], answer: Sequence[Value]) -> None:
        if len(expected) != len(answer):
            raise Mismatch(f"{len(answer)} values where the reference has {len(expected)}")
        left = list(answer)
        for value in expected:
            found = next((other for other in left if value == other), None)
            if found is None:
                found = next((other for other in left if self.matches(value, other)), None)
            if found is None:
                raise Mismatch("one of the reference's values is missing")
            left.remove(found)


def _alike(expected: Kind, answer: Value) -> Kind:
    """The answer, as of the reference's type."""
    if not isinstance(answer, type(expected)):
        raise Mismatch(f"{answer.kind} where the reference is {expected.kind}")
    return answer


def _relation(value: Labelled) -> Relation | None:
    """y = 2x as an equation."""
    if isinstance(value.value, Expression) and value.label.head != "tuple":
        return Relation(value.label, "=", value.value.node)
    return None


def _symbols(relation: Relation) -> set[str]:
    return variables(relation.left) | variables(relation.right)


def _difference(relation: Relation) -> Node:
    return Node("add", (relation.left, Node("neg", (relation.right,))))


def _told(unit: Unit) -> str:
    return " ".join(name if power == 1 else f"{name}^{power}" for name, power in unit)
