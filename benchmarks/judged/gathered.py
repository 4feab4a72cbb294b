r"""Tuples, intervals, unions, inequalities, sets, lists, plus-minus, matrices."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from random import Random

from judged.forms import Answer, fraction, terminating
from judged.symbols import SQUAREFREE, nonzero, signed, term

OPEN = {True: "(", False: "["}
CLOSE = {True: ")", False: "]"}
LESS = {True: "<", False: r"\le"}


def _numbers(rng: Random, count: int) -> list[Fraction]:
    """Distinct numbers, some of them fractions, none the negative of another, none zero."""
    numbers: list[Fraction] = []
    while len(numbers) < count:
        value = Fraction(nonzero(rng, 40), rng.choice((1, 1, 1, 2, 3, 4, 5)))
        if all(abs(value) != abs(other) for other in numbers):
            numbers.append(value)
    return numbers


def _joined(numbers: Sequence[Fraction], comma: str = ", ") -> str:
    return comma.join(fraction(number) for number in numbers)


def coordinates(rng: Random) -> Answer:
    numbers = _numbers(rng, rng.choice((2, 2, 2, 3, 3, 4)))
    texts = [fraction(number) for number in numbers]
    inside = _joined(numbers)
    answer = Answer("tuple", f"({inside})")
    answer.same("spacing", f"({_joined(numbers, ',')})", f"( {_joined(numbers, ' , ')} )")
    answer.same(
        "sized", rf"\left({inside}\right)", rf"\left( {inside} \right)", rf"\big({inside}\big)"
    )
    spaced = _joined(numbers, r",\,")
    answer.same("braces around", f"{{({inside})}}", rf"\left({spaced}\right)")
    answer.same("names before it", f"({', '.join('xyzw'[: len(numbers)])}) = ({inside})")
    if any(number.denominator > 1 for number in numbers):
        slashed = ", ".join(
            f"{n.numerator}/{n.denominator}" if n.denominator > 1 else str(n) for n in numbers
        )
        answer.same("slash", f"({slashed})")
        answer.same("other fraction command", f"({inside})".replace(r"\frac", r"\dfrac"))
        decimals = [decimal for number in numbers if (decimal := terminating(number))]
        if len(decimals) == len(numbers):
            answer.same("exact decimals", f"({', '.join(decimals)})")
        else:
            answer.differs("rounded", f"({', '.join(f'{float(n):.6f}' for n in numbers)})")
    else:
        answer.same("exact decimals", f"({', '.join(f'{n}.0' for n in numbers)})")
    answer.differs("order", f"({_joined(numbers[::-1])})", f"({', '.join(texts[1:] + texts[:1])})")
    answer.differs("list", inside, _joined(numbers, ","))
    answer.differs("set", rf"\{{{inside}\}}", rf"\left\{{{inside}\right\}}")
    answer.differs("interval", f"[{inside}]", f"[{inside})")
    answer.differs(
        "one dropped", f"({_joined(numbers[1:])})", f"({_joined(numbers[:-1])})", texts[0]
    )
    answer.differs("one more", f"({inside}, {numbers[0] + 1})", f"({inside}, {texts[-1]})")
    for place in range(len(numbers)):
        answer.differs(
            "sign", f"({_joined([-n if i == place else n for i, n in enumerate(numbers)])})"
        )
        answer.differs(
            "number", f"({_joined([n + 1 if i == place else n for i, n in enumerate(numbers)])})"
        )
    answer.differs("sum", fraction(sum(numbers, Fraction())), " + ".join(texts))
    if len(numbers) == 2:
        answer.differs("plus-minus", rf"\pm {abs(numbers[0])}")
    return answer


def interval(rng: Random) -> Answer:
    a, b = sorted(_numbers(rng, 2))
    left, right = rng.random() < 0.5, rng.random() < 0.5
    low, high = fraction(a), fraction(b)
    text = f"{OPEN[left]}{low}, {high}{CLOSE[right]}"
    chain = rf"{low} {LESS[left]} x {LESS[right]} {high}"
    answer = Answer("interval", text)
    answer.same("spacing", text.replace(" ", ""), text.replace(", ", r",\,"))
    answer.same("sized", rf"\left{OPEN[left]}{low}, {high}\right{CLOSE[right]}")
    answer.same("membership", rf"x \in {text}", rf"x\in {text.replace(' ', '')}")
    answer.same("inequalities", chain, chain.replace(r"\le", r"\leq"))
    backwards = {"<": ">", r"\le": r"\ge"}
    answer.same("inequalities", rf"{high} {backwards[LESS[right]]} x {backwards[LESS[left]]} {low}")
    answer.same("unicode", chain.replace(r"\le", "≤"), rf"x ∈ {text}")
    if rng.random() < 0.3:
        answer.reference, answer.family = rng.choice(
            ((rf"x \in {text}", "interval"), (chain, "inequality"))
        )
        answer.same("the interval", text)
    answer.differs("open or closed", f"{OPEN[not left]}{low}, {high}{CLOSE[right]}")
    answer.differs("open or closed", f"{OPEN[left]}{low}, {high}{CLOSE[not right]}")
    answer.differs("open or closed", rf"{low} {LESS[not left]} x {LESS[right]} {high}")
    answer.differs("endpoint", f"{OPEN[left]}{fraction(a - 1)}, {high}{CLOSE[right]}")
    answer.differs("endpoint", f"{OPEN[left]}{low}, {fraction(b + 1)}{CLOSE[right]}")
    answer.differs("endpoint", rf"{low} {LESS[left]} x {LESS[right]} {fraction(b + 1)}")
    answer.differs("sign", f"{OPEN[left]}{fraction(-b)}, {fraction(-a)}{CLOSE[right]}")
    answer.differs("set or list", rf"\{{{low}, {high}\}}", f"{low}, {high}", f"{low},{high}")
    answer.differs("one side", rf"x {LESS[right]} {high}", rf"x {backwards[LESS[left]]} {low}")
    answer.differs("one side", f"{OPEN[left]}{low}, \\infty)", rf"(-\infty, {high}{CLOSE[right]}")
    answer.differs("turned round", f"{OPEN[left]}{high}, {low}{CLOSE[right]}", low, high)
    return answer


def ray(rng: Random) -> Answer:
    (a,) = _numbers(rng, 1)
    end, up, is_open = fraction(a), rng.random() < 0.5, rng.random() < 0.5
    text = _ray(end, up, is_open)
    sign = {(True, True): ">", (True, False): r"\ge", (False, True): "<", (False, False): r"\le"}
    turned = sign[not up, is_open]
    answer = Answer("ray", text)
    answer.same("spacing", text.replace(" ", ""), rf"x \in {text}")
    answer.same(
        "inequality",
        f"x {sign[up, is_open]} {end}",
        f"{end} {turned} x",
        f"x{sign[up, is_open]} {end}",
    )
    if up:
        answer.same("plus infinity", text.replace(r"\infty", r"+\infty"))
    answer.same("unicode", text.replace(r"\infty", "∞"))
    answer.same("sized", rf"\left{text[0]}{text[1:-1]}\right{text[-1]}")
    if rng.random() < 0.4:
        answer.reference, answer.family = f"x {sign[up, is_open]} {end}", "inequality"
        answer.same("the interval", text)
    answer.differs("open or closed", _ray(end, up, not is_open), f"x {sign[up, not is_open]} {end}")
    answer.differs("direction", _ray(end, not up, is_open), f"x {turned} {end}")
    answer.differs("endpoint", _ray(fraction(a + 1), up, is_open), _ray(fraction(-a), up, is_open))
    answer.differs("endpoint", f"x {sign[up, is_open]} {fraction(a - 1)}")
    answer.differs("set", rf"\{{{end}, \infty\}}", rf"{end}, \infty", f"x = {end}", rf"x \ne {end}")
    answer.differs("part of it", end, r"\infty", r"(-\infty, \infty)")
    return answer


def _ray(end: str, up: bool, is_open: bool) -> str:
    return rf"{OPEN[is_open]}{end}, \infty)" if up else rf"(-\infty, {end}{CLOSE[is_open]}"


def union(rng: Random) -> Answer:
    a, b = sorted(_numbers(rng, 2))
    is_open = rng.random() < 0.6
    left, right = _ray(fraction(a), False, is_open), _ray(fraction(b), True, is_open)
    less, more = ("<", ">") if is_open else (r"\le", r"\ge")
    answer = Answer("union", rf"{left} \cup {right}")
    answer.same("order", rf"{right} \cup {left}", rf"{right}\cup{left}")
    answer.same("spacing", rf"{left}\cup {right}".replace(" ", "").replace(r"\cup", r" \cup "))
    answer.same("membership", rf"x \in {left} \cup {right}")
    answer.same("unicode", answer.reference.replace(r"\cup", "\N{UNION}").replace(r"\infty", "∞"))
    answer.same("inequalities", rf"x {less} {fraction(a)} \text{{ or }} x {more} {fraction(b)}")
    answer.differs("intersection", rf"{left} \cap {right}")
    answer.differs("one piece", left, right)
    answer.differs("open or closed", rf"{_ray(fraction(a), False, not is_open)} \cup {right}")
    answer.differs("open or closed", rf"{left} \cup {_ray(fraction(b), True, not is_open)}")
    answer.differs("endpoint", rf"{left} \cup {_ray(fraction(b + 1), True, is_open)}")
    answer.differs("the gap", f"({fraction(a)}, {fraction(b)})", f"[{fraction(a)}, {fraction(b)}]")
    answer.differs("all", r"(-\infty, \infty)", rf"{left}, {right}")
    return answer


def finite_set(rng: Random) -> Answer:
    numbers = _numbers(rng, rng.choice((2, 3, 3, 4)))
    inside = _joined(numbers)
    answer = Answer("set", rf"\{{{inside}\}}")
    answer.same(
        "order",
        rf"\{{{_joined(numbers[::-1])}\}}",
        rf"\{{{_joined(numbers[1:] + numbers[:1], ',')}\}}",
    )
    answer.same(
        "sized", rf"\left\{{{inside}\right\}}", rf"\{{ {inside} \}}", rf"\lbrace {inside} \rbrace"
    )
    answer.same("name before it", rf"x \in \{{{inside}\}}", rf"S = \{{{inside}\}}")
    answer.differs("tuple", f"({inside})", f"({_joined(numbers[::-1])})")
    answer.differs("interval", f"[{inside}]")
    answer.differs(
        "one dropped", rf"\{{{_joined(numbers[1:])}\}}", rf"\{{{_joined(numbers[:-1])}\}}"
    )
    answer.differs("one more", rf"\{{{inside}, {max(numbers).__ceil__() + 1}\}}")
    answer.differs("number", rf"\{{{_joined([numbers[0] + 77, *numbers[1:]])}\}}")
    answer.differs("sign", rf"\{{{_joined([-numbers[0], *numbers[1:]])}\}}", fraction(numbers[0]))
    answer.differs("sum", fraction(sum(numbers, Fraction())), r"\emptyset")
    return answer


def listed(rng: Random) -> Answer:
    numbers = _numbers(rng, rng.choice((2, 2, 3, 3, 4)))
    inside = _joined(numbers)
    answer = Answer("list", inside if rng.random() < 0.7 else _joined(numbers, ","))
    answer.same("order", _joined(numbers[::-1]), _joined(numbers[1:] + numbers[:1]))
    answer.same(
        "spacing", _joined(numbers, ","), _joined(numbers, r",\ "), _joined(numbers, r", \; ")
    )
    answer.same("words", rf"{_joined(numbers[:-1])} \text{{ and }} {fraction(numbers[-1])}")
    answer.same("words", f"{_joined(numbers[:-1])} and {fraction(numbers[-1])}")
    if len(numbers) == 2:
        each = [f"x = {fraction(number)}" for number in numbers]
        answer.same("variable before each", ", ".join(each), r" \text{ or } ".join(each))
    answer.same("variable before it", f"x = {inside}")
    answer.differs("tuple", f"({inside})", f"({_joined(numbers[::-1])})", rf"\left({inside}\right)")
    answer.differs("interval", f"[{inside}]")
    answer.differs("one dropped", _joined(numbers[1:]), _joined(numbers[:-1]))
    answer.differs("one more", f"{inside}, {max(numbers).__ceil__() + 1}", f"{inside}, 0")
    answer.differs("number", _joined([numbers[0] + 77, *numbers[1:]]))
    answer.differs("sign", _joined([-numbers[0], *numbers[1:]]), _joined([-n for n in numbers]))
    answer.differs("sum", fraction(sum(numbers, Fraction())), "".join(map(fraction, numbers)))
    return answer


def plus_minus(rng: Random) -> Answer:
    b = rng.choice(SQUAREFREE)
    root = rng.choice((rf"\sqrt{{{b}}}", str(b)))
    if rng.random() < 0.5:
        answer = Answer("plus-minus", rf"\pm {root}")
        both = (root, f"-{root}")
        answer.differs("number", rf"\pm {root.replace(str(b), str(b + 1))}")
    else:
        a = nonzero(rng, 9)
        answer = Answer("plus-minus", rf"{a} \pm {root}")
        if not root.isdigit():
            both = (f"{a} + {root}", f"{a} - {root}")
        else:
            both = (str(a + b), str(a - b))
        answer.differs("number", rf"{a + 1} \pm {root}", rf"{-a} \pm {root}", rf"\pm {root}")
        answer.same("spacing", rf"{a}\pm{root}" if root.startswith("\\") else rf"{a}\pm {root}")
    answer.same("both", ", ".join(both), ", ".join(both[::-1]), r" \text{ and } ".join(both))
    answer.same("variable before it", f"x = {answer.reference}", f"x={answer.reference}")
    answer.same("unicode", answer.reference.replace(r"\pm", "±"))
    if rng.random() < 0.4:
        if answer.reference.startswith(r"\pm") or not root.isdigit():
            answer.right.append(("plus-minus", answer.reference))
        else:  # 4 and -10 as -3 \pm 7: left to the reader, arguable
            answer.right = [form for form in answer.right if "pm" not in form[1] + form[0]]
            answer.right = [form for form in answer.right if "\N{PLUS-MINUS SIGN}" not in form[1]]
        answer.reference, answer.family = ", ".join(both), "list"
    answer.differs("one of them", *both)
    answer.differs("tuple or interval", f"({both[1]}, {both[0]})", f"[{both[1]}, {both[0]}]")
    answer.differs("both the same", f"{both[0]}, {both[0]}")
    answer.differs(
        "one more", f"{both[0]}, {both[1]}, 0" if both[0] != "0" != both[1] else "1, 2, 3"
    )
    return answer


def matrix(rng: Random) -> Answer:
    rows, columns = rng.choice(((2, 1), (3, 1), (2, 2), (2, 2), (3, 3), (1, 2)))
    entries = _numbers(rng, rows * columns)
    grid = [entries[i * columns : (i + 1) * columns] for i in range(rows)]
    answer = Answer("matrix", _matrix(grid))
    answer.same("brackets", _matrix(grid, "bmatrix"))
    answer.same(
        "spacing",
        _matrix(grid, end=r"\\"),
        _matrix(grid, ampersand="&"),
        _matrix(grid, end="\\\\\n"),
    )
    if any(entry.denominator > 1 for entry in entries):
        answer.same("other fraction command", _matrix(grid).replace(r"\frac", r"\dfrac"))
    answer.same("name before it", f"A = {_matrix(grid)}")
    place = rng.randrange(len(entries))
    for kind, value in (("entry", entries[place] + 1), ("sign", -entries[place])):
        other = [value if i == place else entry for i, entry in enumerate(entries)]
        answer.differs(kind, _matrix([other[i * columns : (i + 1) * columns] for i in range(rows)]))
    answer.differs("transposed", _matrix([list(column) for column in zip(*grid, strict=True)]))
    answer.differs("order", _matrix(grid[::-1]) if rows > 1 else _matrix([grid[0][::-1]]))
    answer.differs("dropped", _matrix(grid[1:] if rows > 1 else [grid[0][1:]]))
    answer.differs(
        "other type", fraction(entries[0]), rf"\{{{_joined(entries)}\}}", _joined(entries)
    )
    if rows == columns:
        answer.differs("determinant", _matrix(grid, "vmatrix"))
    return answer


def _matrix(
    grid: Sequence[Sequence[Fraction]],
    kind: str = "pmatrix",
    ampersand: str = " & ",
    end: str = r" \\ ",
) -> str:
    rows = [ampersand.join(fraction(entry) for entry in row) for row in grid]
    return rf"\begin{{{kind}}} {end.join(rows)} \end{{{kind}}}"


def vector(rng: Random) -> Answer:
    """A sum of unit vectors: the order of its terms is free, their names are not."""
    a, b = nonzero(rng, 20), nonzero(rng, 20)
    i, j = r"\mathbf{i}", r"\mathbf{j}"
    answer = Answer("vector", term(a, i) + signed(b, j))
    answer.same("order", term(b, j) + signed(a, i))
    answer.same("spacing", answer.reference.replace(" ", ""))
    answer.differs("number", term(a + 30, i) + signed(b, j))
    answer.differs("sign", term(a, i) + signed(-b, j))
    answer.differs("part of it", term(a, i), str(a + b))
    if a != b:
        answer.differs("names changed", term(a, j) + signed(b, i))
    return answer
