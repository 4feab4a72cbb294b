"""Statements: values with units, equations, inequalities and unions."""

from __future__ import annotations

from itertools import pairwise

from capo_ds.tasks.answers.brackets import REALS, as_value
from capo_ds.tasks.answers.grammar import Parser, plain
from capo_ds.tasks.answers.nodes import INFINITY, Node, variables, walk
from capo_ds.tasks.answers.times import timed
from capo_ds.tasks.answers.units import Phrase, is_unit_word
from capo_ds.tasks.answers.values import (
    Chain,
    Collection,
    Expression,
    Interval,
    Labelled,
    Quantity,
    Ratio,
    Relation,
    Tuple,
    Union,
    Unreadable,
    Value,
    exact,
    expressions,
)

_CURRENCIES = {"$": "dollar", "euro": "euro", "pounds": "pound sterling", "yen": "yen"}
_SUFFIXES = _CURRENCIES | {"cents": "cent"}
_RELATIONS = ("=", "<", ">", "le", "ge", "ne", "in")
_FLIPPED = {"<": ">", ">": "<", "le": "ge", "ge": "le"}
_PERCENT = {"percent", "per cent"}


# ---------------------------------------------------------------- relations


def statement(parser: Parser) -> Value:
    """One value, equation, inequality or ratio."""
    first, operators = _union(parser), []
    if parser.at(":"):
        return _ratio(parser, first)
    sides = [timed(first)]
    while operator := parser.accept(*_RELATIONS):
        operators.append(operator)
        sides.append(timed(_union(parser)))
    if not operators:
        return sides[0]
    if operators == ["in"]:
        return Labelled(_label(sides[0]), sides[1])
    if set(operators) == {"="}:
        return _equation(sides)
    return _inequality([plain(side) for side in sides], operators)


def _label(value: Value) -> Node:
    if isinstance(value, Expression):
        return value.node
    if isinstance(value, Tuple) and (items := expressions(value.items)):
        return Node("tuple", tuple(item.node for item in items))
    raise Unreadable(f"a {value.kind} that is said to be something")


def is_label(value: Value) -> bool:
    """Whether a side of an equation merely names the other: x, f(x), AB, m + n, (x, y)."""
    try:
        node = _label(value)
    except Unreadable:
        return False
    nodes = list(walk(node))
    named = any(n.head in ("word", "call") for n in nodes) or bool(variables(node))
    calls = [n for n in nodes if n.head == "call"]
    free = [n for n in nodes if n.head in ("num", "inf", "pm", "neg", "pow", "root", "div")]
    return named and (not free or (len(calls) == 1 and node.head == "call"))


def _equation(sides: list[Value]) -> Value:
    first, last = sides[0], sides[-1]
    if len(sides) > 2:
        named = [side for side in sides[:-1] if is_label(side)]
        worked = tuple(plain(side) for side in sides if side not in named)
        return Labelled(_label(named[0]), _chain(worked)) if named else _chain(worked)
    if is_label(first):
        return _labelled(first, last)
    if is_label(last) and isinstance(last, Expression) and last.node.head in ("sym", "call"):
        return _labelled(last, first)
    left, right = plain(first), plain(last)
    if not variables(left) and not variables(right):
        return Chain((left, right))
    return Relation(left, "=", right)


def _chain(sides: tuple[Node, ...]) -> Value:
    if len(sides) == 1:
        return Expression(sides[0])
    return Chain(sides)


def _labelled(label: Value, value: Value) -> Value:
    node = _label(label)
    if isinstance(value, Collection) and not value.braced:  # x = plus-minus 3
        return Collection(tuple(Labelled(node, item) for item in value.items))
    named = set() if node.head == "call" else variables(node)
    if isinstance(value, Expression) and named & variables(value.node):
        return Relation(plain(label), "=", value.node)
    return Labelled(node, value)


def _inequality(sides: list[Node], operators: list[str]) -> Value:
    if len(sides) == 2:
        left, operator, right = sides[0], operators[0], sides[1]
        if not variables(left) and operator != "ne":
            left, operator, right = right, _FLIPPED[operator], left
        if left.head == "sym" and left.args[0] not in variables(right):
            return Labelled(left, _half_line(operator, right))
        if operator in (">", "ge"):
            left, operator, right = right, _FLIPPED[operator], left
        return Relation(left, operator, right)
    if len(sides) != 3:
        raise Unreadable("a chain of more than two inequalities")
    low, middle, high = sides
    if set(operators) <= {">", "ge"}:
        low, high = high, low
        operators = [_FLIPPED[operator] for operator in operators[::-1]]
    if not set(operators) <= {"<", "le"} or middle.head != "sym":
        raise Unreadable("a chain of inequalities that is no interval")
    return Labelled(middle, Interval(low, high, operators[0] == "le", operators[1] == "le"))


def _half_line(operator: str, bound: Node) -> Interval | Union:
    if operator in ("<", "le"):
        return Interval(REALS.low, bound, False, operator == "le")
    above = Interval(bound, INFINITY, operator == "ge", False)
    if operator == "ne":
        return Union((Interval(REALS.low, bound, False, False), above))
    return above


# ---------------------------------------------------------------- values with units, unions, ratios


def _union(parser: Parser) -> Value:
    """Sets and intervals joined by a union sign, or taken out of each other; or one value."""
    pieces = [_side(parser)]
    while _accept_cup(parser, pieces[-1]):
        pieces.append(_side(parser))
    value = pieces[0] if len(pieces) == 1 else Union(tuple(p for v in pieces for p in _parts(v)))
    if parser.accept("setminus"):
        return _without(value, _side(parser))
    return value


def _accept_cup(parser: Parser, before: Value) -> bool:
    if parser.accept("cup"):
        return True
    plain_u = parser.next.kind == "letters" and parser.next.text == "U"
    if plain_u and isinstance(before, Tuple | Interval | Collection):
        parser.position += 1
        return True
    return False


def _parts(value: Value) -> tuple[Interval | Expression, ...]:
    if isinstance(value, Tuple) and (pair := as_interval(value)):
        return (pair,)
    if isinstance(value, Interval):
        return (value,)
    if isinstance(value, Collection) and value.braced and (items := expressions(value.items)):
        return items
    raise Unreadable(f"the union of a {value.kind} and another set")


def as_interval(pair: Tuple) -> Interval | None:
    """A pair of expressions as an open interval."""
    items = expressions(pair.items)
    if items is None or len(items) != 2:
        return None
    low, high = items
    return Interval(low.node, high.node, False, False)


def _without(whole: Value, removed: Value) -> Value:
    """The reals without some rational points."""
    points = removed.items if isinstance(removed, Collection) and removed.braced else ()
    exactly = ((exact(p.node), p.node) for p in points if isinstance(p, Expression))
    values = {value: node for value, node in exactly if value is not None}
    if whole != REALS or len(values) != len(points) or not values:
        raise Unreadable("a set taken out of another")
    ends = [REALS.low, *(values[key] for key in sorted(values)), INFINITY]
    pairs = pairwise(ends)
    return Union(tuple(Interval(low, high, False, False) for low, high in pairs))


def _ratio(parser: Parser, first: Value) -> Value:
    parts = [plain(first)]
    unit = ()
    while parser.accept(":"):
        part = _side(parser)
        if isinstance(part, Quantity):
            part, unit = part.value, part.unit
        parts.append(plain(part))
    ratio = Ratio(tuple(parts))
    return timed(Quantity(ratio, unit)) if unit else ratio


def _side(parser: Parser) -> Value:
    """A value, with its currency before it or its unit behind it."""
    minus = parser.at("-") and parser.after().text in _CURRENCIES and parser.accept("-")
    currency = parser.accept(*_CURRENCIES)
    value = parser.sum()
    if currency is not None:
        node = plain(value)
        node = Node("neg", (node,)) if minus else node
        unit = Phrase()
        unit.put(_CURRENCIES[currency])
        return _quantity(parser, node, unit)
    if isinstance(value, Node) and value.head != "word":
        return _quantity(parser, value, Phrase())
    return as_value(value)


def _quantity(parser: Parser, node: Node, unit: Phrase) -> Value:
    if parser.next.kind in ("words", "letters") and parser.next.text.lower() in _PERCENT:
        parser.position += 1
        node = Node("percent", (node,))
    _read_unit(parser, unit)
    if unit.scale is not None:
        node = Node("scaled", (node, unit.scale))
    value = expanded(node)
    found = unit.unit()
    if found and isinstance(value, Collection):
        return Collection(tuple(Quantity(item, found) for item in value.items))
    return Quantity(value, found) if found else value


def _read_unit(parser: Parser, unit: Phrase) -> None:
    """Words, powers and slashes behind a number."""
    while True:
        kind, text, spaced = parser.next
        if kind == "words" or (kind == "letters" and _in_unit(unit, text, spaced)):
            unit.add(text)
        elif parser.is_degree():
            parser.skip_degree()
            unit.put("degree")
            continue
        elif parser.at(*_SUFFIXES):
            unit.put(_SUFFIXES[text])
        elif parser.at("/") and unit.order and parser.after().kind in ("words", "letters"):
            unit.add("/")
        elif parser.at("^") and unit.order:
            parser.position += 1
            power = exact(parser.exponent())
            if power is None or power.denominator != 1:
                raise Unreadable("a unit to no whole power")
            unit.raise_last(int(power))
            continue
        elif parser.at("(") and parser.after().kind in ("words", "letters") and not unit.order:
            _in_brackets(parser, unit)
        else:
            return
        parser.position += 1


def _in_unit(unit: Phrase, text: str, spaced: bool) -> bool:
    return is_unit_word(text, spaced) or (bool(unit.order) and unit.powers != {"degree": 0})


def _in_brackets(parser: Parser, unit: Phrase) -> None:
    """9 (apples), as ASDiv has it; stops at the closing bracket."""
    parser.position += 1
    while parser.next.kind in ("words", "letters"):
        unit.add(parser.next.text)
        parser.position += 1
    if not parser.at(")"):
        raise Unreadable("words in brackets that do not close")


def expanded(node: Node) -> Value:
    """Plus-minus as its two values."""
    signs = [n for n in walk(node) if n.head in ("pm", "mp")]
    if not signs:
        return Expression(node)
    if len(signs) > 2 or (len(signs) == 2 and {n.head for n in signs} != {"pm", "mp"}):
        raise Unreadable("plus-minus twice")
    return Collection(tuple(Expression(_chosen(node, plus)) for plus in (True, False)))


def _chosen(node: Node, plus: bool) -> Node:
    args = tuple(_chosen(arg, plus) if isinstance(arg, Node) else arg for arg in node.args)
    if node.head in ("pm", "mp"):
        return args[0] if (node.head == "pm") == plus else Node("neg", args)
    if node.head in ("add", "mul"):
        args = tuple(sorted(args, key=repr))
    return Node(node.head, args)
