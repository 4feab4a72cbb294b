"""What an answer can be: one typed value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from capo_ds.tasks.answers.nodes import INFINITY, Node, TooLarge, rational, variables

Unit = tuple[tuple[str, int], ...]  # names with their powers, sorted: m/s is (("m", 1), ("s", -1))


class Unreadable(ValueError):
    """Why a text is not read as an answer."""


@dataclass(frozen=True)
class Expression:
    """A number or an expression in variables."""

    node: Node

    @property
    def kind(self) -> str:
        if variables(self.node) or self.node == INFINITY:
            return "expression"
        return "number"


@dataclass(frozen=True)
class Quantity:
    """A value with a unit; an empty unit is none."""

    value: Value
    unit: Unit
    kind = "quantity"


@dataclass(frozen=True)
class Tuple:
    """Ordered values in round brackets. A pair may be an open interval as well."""

    items: tuple[Value, ...]
    kind = "tuple"


@dataclass(frozen=True)
class Interval:
    low: Node
    high: Node
    low_closed: bool
    high_closed: bool
    kind = "interval"


@dataclass(frozen=True)
class Union:
    """Of intervals and of the points of sets."""

    pieces: tuple[Interval | Expression, ...]
    kind = "union"


@dataclass(frozen=True)
class Collection:
    """A set in braces, or values side by side; the order of either means nothing.

    ordered: lists side by side (1;2,3), the parts of an answer, which keep their places.
    """

    items: tuple[Value, ...]
    braced: bool = False
    ordered: bool = False

    @property
    def kind(self) -> str:
        return "list of lists" if self.ordered else "set" if self.braced else "list"


@dataclass(frozen=True)
class Labelled:
    """x = 5, x in [1, 2], f(x) = 2x: a name and what it is."""

    label: Node
    value: Value

    @property
    def kind(self) -> str:
        if isinstance(self.value, Expression) and variables(self.value.node):
            return "equation"
        return self.value.kind


@dataclass(frozen=True)
class Relation:
    """left < right, or left = right, or <=, != of expressions."""

    left: Node
    operator: str
    right: Node

    @property
    def kind(self) -> str:
        return "equation" if self.operator == "=" else "inequality"


@dataclass(frozen=True)
class Chain:
    """a = b = c, of which the last side is the answer."""

    sides: tuple[Node, ...]
    kind = "equation"


@dataclass(frozen=True)
class Matrix:
    rows: tuple[tuple[Node, ...], ...]
    kind = "matrix"


@dataclass(frozen=True)
class Based:
    """Digits in a stated base."""

    digits: str
    base: int
    kind = "number in a base"


@dataclass(frozen=True)
class Ratio:
    """a : b : ..., or what a clock shows."""

    parts: tuple[Node, ...]
    kind = "time or ratio"


@dataclass(frozen=True)
class Time:
    """A time of the day whose half is known, in seconds after midnight."""

    seconds: int
    kind = "time"


@dataclass(frozen=True)
class Text:
    """Words, in lower case."""

    words: str
    kind = "text"


Value = (
    Expression | Quantity | Tuple | Interval | Union | Collection | Labelled | Relation | Chain
    | Matrix | Based | Ratio | Time | Text
)  # fmt: skip


def expressions(values: Sequence[Value]) -> tuple[Expression, ...] | None:
    """The values, if all of them are expressions."""
    found = tuple(value for value in values if isinstance(value, Expression))
    return found if len(found) == len(values) else None


def exact(node: Node) -> Fraction | None:
    """As `rational`, but None also for what is too large."""
    try:
        return rational(node)
    except TooLarge:
        return None
