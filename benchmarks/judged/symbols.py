r"""Exact numbers with roots, pi or i, and expressions in variables."""

from __future__ import annotations

from fractions import Fraction
from math import gcd
from random import Random

from judged.forms import Answer, fraction

SQUAREFREE = (2, 3, 5, 6, 7, 10, 11, 13, 15, 17, 51)


def signed(number: int, symbol: str = "") -> str:
    """` + 3x`, ` - x`: a later term of a sum."""
    size = "" if abs(number) == 1 and symbol else str(abs(number))
    return f" {'-' if number < 0 else '+'} {size}{symbol}"


def term(number: int, symbol: str = "") -> str:
    """`3x`, `-x`: the first term of a sum."""
    size = "" if abs(number) == 1 and symbol else str(abs(number))
    return f"{'-' if number < 0 else ''}{size}{symbol}"


def nonzero(rng: Random, largest: int) -> int:
    return rng.randint(1, largest) * rng.choice((1, -1))


def surd(rng: Random) -> Answer:
    a, b = rng.randint(1, 12), rng.choice(SQUAREFREE)
    root = rf"\sqrt{{{b}}}"
    answer = Answer("surd", term(a, root))
    answer.same("unicode", term(a, f"√{b}"), term(a, f"√({b})"))
    answer.same("power", term(a, rf" \cdot {b}^{{1/2}}") if a > 1 else rf"{b}^{{\frac{{1}}{{2}}}}")
    answer.same("variable before it", f"x = {term(a, root)}")
    answer.same("unit added", rf"{term(a, root)} \text{{ cm}}", f"{term(a, root)} meters")
    if b < 10:
        answer.same("bare argument", term(a, rf"\sqrt{b}"), term(a, rf"\sqrt {b}"))
    if a > 1:
        answer.same("taken under the root", rf"\sqrt{{{a * a * b}}}")
        answer.same("product sign", rf"{a} \cdot {root}", rf"{a}\cdot{root}", rf"{a} \, {root}")
    answer.same("rationalised", rf"\frac{{{a * b}}}{{{root}}}", rf"\frac{{{2 * a}{root}}}{{2}}")
    value = a * b**0.5
    answer.differs("rounded", f"{value:.6f}", f"{value:.10f}", f"{value:.2f}", f"x={value:.6f}")
    answer.differs("rounded", rf"\approx {value:.4f}", str(value))
    answer.differs("radicand", term(a, rf"\sqrt{{{b + 1}}}"), str(a * b))
    answer.differs("factor", term(a + 1, root), term(2 * a, root))
    answer.differs("sign", term(-a, root))
    answer.differs(
        "other root", term(a, rf"\sqrt[3]{{{b}}}"), term(a, str(b) if a == 1 else rf"^{{{b}}}")
    )
    answer.differs("plus-minus", rf"\pm {term(a, root)}")
    answer.differs("sum", rf"{a} + {root}" if a > 1 else rf"1 + {root}")
    return answer


def quotient_of_surds(rng: Random) -> Answer:
    b, c = rng.choice(SQUAREFREE), rng.randint(2, 12)
    a = rng.choice([k for k in range(1, 12) if gcd(k, c) == 1])
    root = rf"\sqrt{{{b}}}"
    answer = Answer("surd quotient", rf"\frac{{{term(a, root)}}}{{{c}}}")
    answer.same(
        "factor before it", rf"\frac{{{a}}}{{{c}}}{root}", rf"\frac{{{a}}}{{{c}}} \cdot {root}"
    )
    answer.same("slash", f"{term(a, root)}/{c}", rf"\dfrac{{{term(a, root)}}}{{{c}}}")
    answer.same("rationalised", rf"\frac{{{a * b}}}{{{c}{root}}}")
    answer.same("unicode", f"{term(a, f'√{b}')}/{c}")
    answer.differs("upside down", rf"\frac{{{c}}}{{{term(a, root)}}}")
    answer.differs("rounded", f"{a * b**0.5 / c:.6f}", f"{a * b**0.5 / c:.12f}")
    answer.differs("denominator", rf"\frac{{{term(a, root)}}}{{{c + 1}}}", term(a, root))
    other = term(a, rf"\sqrt{{{b + 2}}}")
    answer.differs("radicand", rf"\frac{{{other}}}{{{c}}}")
    answer.differs(
        "root of the quotient",
        rf"\sqrt{{\frac{{{a * b}}}{{{c}}}}}" if a > 1 else rf"\sqrt{{{b}/{c}}}",
    )
    answer.differs("sign", rf"-\frac{{{term(a, root)}}}{{{c}}}")
    return answer


def sum_of_surds(rng: Random) -> Answer:
    a, b, c = rng.randint(1, 20), nonzero(rng, 9), rng.choice(SQUAREFREE)
    root = rf"\sqrt{{{c}}}"
    answer = Answer("surd sum", term(a) + signed(b, root))
    answer.same("order", term(b, root) + signed(a))
    answer.same("spacing", (term(a) + signed(b, root)).replace(" ", ""))
    answer.same("product sign", f"{a}" + signed(b) + rf"\cdot {root}") if abs(b) > 1 else None
    answer.same("unicode", term(a) + signed(b, f"√{c}"))
    answer.same("fraction", rf"\frac{{{term(2 * a)}{signed(2 * b, root)}}}{{2}}")
    if abs(b) > 1:
        answer.same(
            "taken under the root", term(a) + (" + " if b > 0 else " - ") + rf"\sqrt{{{b * b * c}}}"
        )
    answer.differs("conjugate", term(a) + signed(-b, root), term(-a) + signed(b, root))
    answer.differs("plus-minus", rf"{a} \pm {term(abs(b), root)}")
    answer.differs("rounded", f"{a + b * c**0.5:.6f}", f"{a + b * c**0.5:.12f}")
    answer.differs("parts changed", term(b) + signed(a, root)) if abs(b) != a else None
    answer.differs(
        "number", term(a + 1) + signed(b, root), term(a) + signed(b + (1 if b > 0 else -1), root)
    )
    answer.differs("merged", term(a + b, root) if a + b else "0", str(a), term(b, root))
    return answer


def cube_root(rng: Random) -> Answer:
    a, b = rng.randint(1, 6), rng.choice((2, 3, 4, 5, 6, 7, 9, 10))
    root = rf"\sqrt[3]{{{b}}}"
    answer = Answer("cube root", term(a, root))
    answer.same("power", rf"{b}^{{1/3}}" if a == 1 else rf"{a} \cdot {b}^{{\frac{{1}}{{3}}}}")
    answer.same("taken under the root", rf"\sqrt[3]{{{a**3 * b}}}")
    answer.differs("square root", term(a, rf"\sqrt{{{b}}}"), term(a, rf"\sqrt[4]{{{b}}}"))
    answer.differs("rounded", f"{a * b ** (1 / 3):.6f}", f"{a * b ** (1 / 3):.10f}")
    answer.differs("radicand", term(a, rf"\sqrt[3]{{{b + 1}}}"), term(a + 1, root), term(-a, root))
    return answer


def pi_multiple(rng: Random) -> Answer:
    value = Fraction(rng.randint(1, 24), rng.choice((1, 1, 2, 3, 4, 6, 7)))
    p, q = value.numerator, value.denominator
    top = term(p, r"\pi")
    answer = Answer("pi", top if q == 1 else rf"\frac{{{top}}}{{{q}}}")
    answer.same("unicode", term(p, "π") + (f"/{q}" if q > 1 else ""))
    if q > 1:
        answer.same("factor before it", rf"{fraction(value)}\pi", rf"{fraction(value)} \pi")
        answer.same("slash", f"{top}/{q}", rf"\dfrac{{{top}}}{{{q}}}")
    if p > 1 and q == 1:
        answer.same("product sign", rf"{p} \cdot \pi", rf"{p} \pi", rf"{p}*\pi")
    answer.same("unit added", rf"{answer.reference} \text{{ square units}}")
    number = float(value) * 3.141592653589793
    answer.differs("rounded", f"{number:.6f}", f"{number:.2f}", f"{number:.10f}", str(number))
    answer.differs(
        "rounded", fraction(value * Fraction(22, 7)), fraction(value * Fraction(314, 100))
    )
    answer.differs("pi dropped", fraction(value), rf"{answer.reference} + 1", rf"{p + 1}\pi")
    answer.differs("power", rf"{fraction(value)}\pi^2", rf"-{answer.reference}")
    answer.differs("another letter", answer.reference.replace(r"\pi", "x"))
    return answer


def complex_number(rng: Random) -> Answer:
    a, b = nonzero(rng, 20), nonzero(rng, 20)
    text = term(a) + signed(b, "i")
    answer = Answer("complex", text)
    answer.same("order", term(b, "i") + signed(a))
    answer.same("spacing", text.replace(" ", ""), f" {text} ")
    answer.same(
        "markup",
        text.replace("i", r"\mathrm{i}"),
        text.replace(" ", "").replace("i", r"\mathrm{i}"),
    )
    answer.same("variable before it", f"z = {text}", f"z={text.replace(' ', '')}")
    if abs(b) > 1:
        answer.same("product sign", term(a) + signed(b) + r" \cdot i", term(a) + signed(b) + "*i")
    answer.differs("conjugate", term(a) + signed(-b, "i"))
    answer.differs("sign", term(-a) + signed(b, "i"), term(-a) + signed(-b, "i"))
    answer.differs("parts changed", term(b) + signed(a, "i")) if a != b else None
    answer.differs("part of it", term(a), term(b, "i"))
    answer.differs("number", term(a + 30) + signed(b, "i"), term(a) + signed(b + 30, "i"))
    answer.differs("i dropped", term(a) + signed(b), str(a + b), f"({a}, {b})", f"{a}, {b}")
    answer.differs("another letter", text.replace("i", "x"))
    return answer


def logarithm(rng: Random) -> Answer:
    base, n = rng.choice((2, 3, 5, 7)), rng.choice((6, 11, 13, 14, 15, 22))
    answer = Answer("logarithm", rf"\log_{{{base}}} {n}")
    answer.same("markup", rf"\log_{base} {n}", rf"\log_{base}({n})", rf"\log_{{{base}}}{{{n}}}")
    answer.same(
        "quotient", rf"\frac{{\ln {n}}}{{\ln {base}}}", rf"\frac{{\log {n}}}{{\log {base}}}"
    )
    answer.differs("base", rf"\log_{{{base + 1}}} {n}", rf"\log {n}", rf"\ln {n}")
    answer.differs("argument", rf"\log_{{{base}}} {n + 1}", rf"\log_{{{n}}} {base}")
    answer.differs("quotient", rf"\frac{{\ln {base}}}{{\ln {n}}}", rf"-\log_{{{base}}} {n}", str(n))
    return answer


def trigonometric(rng: Random) -> Answer:
    f, k = rng.choice((r"\sin", r"\cos", r"\tan")), rng.randint(2, 9)
    answer = Answer("trigonometric", rf"{f} {k}x")
    answer.same("markup", rf"{f}({k}x)", rf"{f}\left({k}x\right)", rf"{f}{{{k}x}}")
    other = r"\cos" if f == r"\sin" else r"\sin"
    answer.differs("function", rf"{other} {k}x", rf"{other}({k}x)")
    answer.differs("argument", rf"{f} {k + 1}x", rf"{f} {k}y", rf"{f} x", rf"{k}{f} x")
    answer.differs("power", rf"{f}^2 {k}x", rf"-{f} {k}x", f"{k}x")
    return answer


def binomial(rng: Random) -> Answer:
    n, k = rng.randint(5, 20), rng.randint(2, 4)
    value = 1
    for i in range(k):
        value = value * (n - i) // (i + 1)
    answer = Answer("binomial", rf"\binom{{{n}}}{{{k}}}")
    answer.same("number", str(value), f"{value:,}")
    answer.same("markup", rf"\dbinom{{{n}}}{{{k}}}", rf"{{{n} \choose {k}}}")
    answer.differs("arguments", rf"\binom{{{n + 1}}}{{{k}}}", rf"\binom{{{k}}}{{{n}}}")
    answer.differs("number", str(value + 1), rf"\frac{{{n}}}{{{k}}}", f"({n}, {k})", str(n + k))
    return answer
