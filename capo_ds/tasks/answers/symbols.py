"""Equality of expressions by SymPy, for a process of its own: it can take for ever.

Two expressions are equal only when that is proved: by exact arithmetic, as rational functions of
what stands in them, by the minimal polynomial of algebraic numbers, or by rules. A numerical
value to 30 digits only ever proves that two expressions differ.
"""

from __future__ import annotations

from collections.abc import Callable

import sympy
from sympy import Expr

from capo_ds.tasks.answers.compare import Engine
from capo_ds.tasks.answers.nodes import Node, TooLarge, rational, walk

DIGITS = 30
MAX_POWER = 500  # of what is no number
_POINTS = (
    ("1.3719", "2.1833", "0.7121", "3.0917", "1.9137"), ("0.4421", "0.9171", "2.7713", "1.1399"),
)  # fmt: skip
_CONSTANTS = {"pi": sympy.pi, "e": sympy.E, "i": sympy.I}
_RENAMED = {
    "ln": "log", "arcsin": "asin", "arccos": "acos", "arctan": "atan", "arccot": "acot",
    "max": "Max", "min": "Min", "Re": "re", "Im": "im",
}  # fmt: skip
_KNOWN = {
    "sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "exp", "gcd", "lcm", "asin",
    "acos", "atan", "acot", "log", "Max", "Min", "re", "im",
}  # fmt: skip


class Symbols(Engine):
    """Decides what `Engine` cannot."""

    def equal(self, x: Node, y: Node) -> bool:
        if x == y:
            return True
        left, right = rational(x), rational(y)
        if left is not None and right is not None:
            return left == right
        positive = not any(n.head == "abs" for node in (x, y) for n in walk(node))
        return is_zero(to_sympy(x, positive) - to_sympy(y, positive))

    def proportional(self, x: Node, y: Node, positive: bool) -> bool:
        if x == y:
            return True
        left, right = to_sympy(x, True), to_sympy(y, True)
        if is_zero(left) or is_zero(right):
            return is_zero(left) and is_zero(right)
        factor = sympy.cancel(sympy.together(left / right))
        return not factor.free_symbols and (not positive or bool(factor.is_positive))


def is_zero(difference: Expr) -> bool:
    """Whether it is proved to be 0."""
    if difference.is_Number:
        return bool(difference == 0)
    if difference.has(sympy.nan, sympy.zoo, sympy.oo):
        return False
    if not difference.free_symbols:
        return _is_zero_constant(difference)
    if any(_differs(difference, point) for point in _POINTS):
        return False
    return any(step(difference) == 0 for step in _STEPS)


def _is_zero_constant(difference: Expr) -> bool:
    value = difference.evalf(DIGITS)
    if value.is_comparable and abs(value) > sympy.Float("1e-20"):
        return False
    if any(step(difference) == 0 for step in (sympy.expand, sympy.radsimp, sympy.simplify)):
        return True
    return difference.equals(0) is True


def _differs(difference: Expr, point: tuple[str, ...]) -> bool:
    """Whether the value at a point shows that it is not 0 everywhere."""
    names = sorted(difference.free_symbols, key=str)
    values = {
        s: sympy.Rational(point[i % len(point)]) + i // len(point) for i, s in enumerate(names)
    }
    value = difference.subs(list(values.items())).evalf(DIGITS, chop=False)
    return bool(value.is_number and value.is_finite and abs(value) > sympy.Float("1e-15"))


_STEPS: tuple[Callable[[Expr], Expr], ...] = (
    sympy.expand,
    lambda d: sympy.cancel(sympy.together(d)),
    sympy.simplify,
    lambda d: sympy.simplify(sympy.expand_log(sympy.expand_trig(d), force=True)),
)


def to_sympy(node: Node, positive: bool) -> Expr:
    """The node as SymPy has it; variables are real, or positive.

    Raises:
        TooLarge: a power that is not expanded.
    """
    head = node.head
    if head == "inf":
        return sympy.oo
    if head == "sym":
        name = node.args[0]
        return _CONSTANTS.get(name) or sympy.Symbol(name, real=True, positive=positive or None)
    value = rational(node)
    if value is not None:
        return sympy.Rational(value.numerator, value.denominator)
    if head == "call":
        return _call(node, positive)
    args = [
        to_sympy(arg, positive) if isinstance(arg, Node) else sympy.Rational(arg)
        for arg in node.args
    ]
    if head == "pow" and args[1].is_Integer and abs(args[1]) > MAX_POWER:
        raise TooLarge("a power too large to expand")
    return _RULES[head](*args)


def _call(node: Node, positive: bool) -> Expr:
    name, *inner = node.args
    args = [to_sympy(arg, positive) for arg in inner]
    if name in ("log", "lg"):
        return sympy.log(args[0]) / sympy.log(args[1] if len(args) > 1 else 10)
    name = _RENAMED.get(name, name)
    return getattr(sympy, name)(*args) if name in _KNOWN else sympy.Function(name)(*args)


_RULES: dict[str, Callable[..., Expr]] = {
    "num": sympy.Rational,
    "add": lambda *terms: sympy.Add(*terms),
    "mul": lambda *factors: sympy.Mul(*factors),
    "neg": lambda x: -x,
    "div": lambda x, y: x / y,
    "pow": lambda x, y: x**y,
    "root": lambda index, x: x ** (1 / index),
    "factorial": sympy.factorial,
    "binom": sympy.binomial,
    "abs": sympy.Abs,
    "floor": sympy.floor,
    "ceil": sympy.ceiling,
    "percent": lambda x: x / 100,
    "degree": lambda x: x * sympy.pi / 180,
    "scaled": lambda x, scale: x * scale,
}
