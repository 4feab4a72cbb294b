"""Expressions as trees, and their exact values where those are rational numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple

MAX_BITS = 1 << 16  # of a numerator or a denominator; larger powers are not evaluated
MAX_FACTORIAL = 1000


class TooLarge(ValueError):
    """A number is not evaluated for its size."""


class Node(NamedTuple):
    """One operation of an expression.

    head and args are, with x, y for nodes:
        num Fraction · sym name · word text · inf
        add x... · mul x... · neg x · div x y · pow x y · root index x · pm x · mp x
        call name x... · factorial x · binom x y · abs x · floor x · ceil x
        percent x · degree x · scaled x Fraction (5 million, 1.5 * 10^3)
    The terms of a sum and the factors of a product are in a fixed order.
    """

    head: str
    args: tuple[Any, ...] = ()


INFINITY = Node("inf")
CONSTANTS = {"pi", "e", "i"}  # names of symbols that are no variables


def number(value: Fraction | int) -> Node:
    return Node("num", (Fraction(value),))


def symbol(name: str) -> Node:
    return Node("sym", (name,))


def combined(head: str, args: list[Node]) -> Node:
    """A sum or a product; of one argument, that argument."""
    return args[0] if len(args) == 1 else Node(head, tuple(sorted(args, key=repr)))


def walk(node: Node) -> Iterator[Node]:
    """The node and all below it."""
    yield node
    for arg in node.args:
        if isinstance(arg, Node):
            yield from walk(arg)


def variables(node: Node) -> set[str]:
    """Names of the symbols that are no constants."""
    names = {n.args[0] for n in walk(node) if n.head == "sym"}
    return names - CONSTANTS


def rational(node: Node) -> Fraction | None:
    """The exact value if the node is made of rational numbers and has a rational value, else None.

    Raises:
        TooLarge: the value would have more than MAX_BITS bits.
    """
    if node.head == "num":
        return node.args[0]
    rule = _RULES.get(node.head)
    if rule is None:
        return None
    values = [rational(arg) if isinstance(arg, Node) else arg for arg in node.args]
    return None if any(value is None for value in values) else rule(*values)


def leaves_arithmetic(node: Node) -> bool:
    """Whether a sum, a product or the like of rational numbers is left for the reader to do.

    Fractions, powers and roots of numbers (32/2, 2^4) are forms of a number, and so is 1.5 * 10^3;
    8 + 8, 2 * 8, 3 * sqrt(4), 5! and (1/2)/3 are work not done.
    """
    for part in walk(node):
        numbers = [arg for arg in part.args if isinstance(arg, Node) and _is_number(arg)]
        if part.head in ("add", "mul") and len(numbers) > 1:
            return True
        if part.head in ("factorial", "binom", "floor", "ceil", "call", "abs") and numbers:
            return rational(part) is not None
        if part.head == "div" and any(_unsigned(arg).head == "div" for arg in numbers):
            return True
        if part.head == "neg" and part.args[0].head == "neg":
            return True
    return False


def _is_number(node: Node) -> bool:
    try:
        return rational(node) is not None
    except TooLarge:
        return True


def _unsigned(node: Node) -> Node:
    return node.args[0] if node.head == "neg" else node


def _quotient(x: Fraction, y: Fraction) -> Fraction | None:
    return x / y if y else None


def _power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if exponent.denominator != 1:
        root = _root(Fraction(exponent.denominator), base) if base >= 0 else None
        return None if root is None else _power(root, Fraction(exponent.numerator))
    if base in (0, 1, -1):
        if base == 0 and exponent <= 0:
            return None
        return base ** (exponent.numerator % 2 if base == -1 else 1)
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(exponent) * bits > MAX_BITS:
        raise TooLarge("a power too large to evaluate")
    return base**exponent.numerator


def _root(index: Fraction, value: Fraction) -> Fraction | None:
    """The real root if it is rational; negative numbers have odd roots."""
    n = index.numerator
    if index.denominator != 1 or not 2 <= n <= 64 or (value < 0 and n % 2 == 0):
        return None
    top, bottom = (_integer_root(n, abs(part)) for part in value.as_integer_ratio())
    if top is None or bottom is None:
        return None
    return Fraction(top, bottom) * (-1 if value < 0 else 1)


def _integer_root(n: int, value: int) -> int | None:
    if n == 2:
        root = math.isqrt(value)
    else:  # Newton from above
        root = 1 << -(-value.bit_length() // n)
        while (better := ((n - 1) * root + value // root ** (n - 1)) // n) < root:
            root = better
    return root if root**n == value else None


def _factorial(value: Fraction) -> Fraction | None:
    if value.denominator != 1 or value < 0:
        return None
    if value > MAX_FACTORIAL:
        raise TooLarge("a factorial too large to evaluate")
    return Fraction(math.factorial(value.numerator))


def _binomial(n: Fraction, k: Fraction) -> Fraction | None:
    if n.denominator != 1 or k.denominator != 1 or n < 0 or k < 0:
        return None
    if n > MAX_FACTORIAL:
        raise TooLarge("a binomial coefficient too large to evaluate")
    return Fraction(math.comb(n.numerator, k.numerator))


_RULES = {
    "add": lambda *terms: sum(terms, Fraction(0)),
    "mul": lambda *factors: math.prod(factors, start=Fraction(1)),
    "neg": lambda x: -x,
    "div": _quotient,
    "pow": _power,
    "root": _root,
    "factorial": _factorial,
    "binom": _binomial,
    "abs": abs,
    "floor": lambda x: Fraction(math.floor(x)),
    "ceil": lambda x: Fraction(math.ceil(x)),
    "percent": lambda x: x / 100,
    "scaled": lambda x, scale: x * scale,
}
