r"""Answers that join several types: sums with pi, nested roots, lists of points, letters."""

from __future__ import annotations

from fractions import Fraction
from math import gcd, pi, sqrt
from random import Random

from judged.forms import Answer, fraction
from judged.symbols import SQUAREFREE, nonzero, signed, term


def pi_sum(rng: Random) -> Answer:
    """Areas: multiples of pi, with a number or a root."""
    a, b, c = rng.randint(1, 30), nonzero(rng, 20), rng.choice(SQUAREFREE)
    root = rng.choice(("", rf"\sqrt{{{c}}}"))
    first, second = term(a, r"\pi"), term(b, root)
    answer = Answer("sum with pi", first + signed(b, root))
    answer.same("order", second + signed(a, r"\pi"))
    answer.same("spacing", answer.reference.replace(" ", ""))
    answer.same("unicode", answer.reference.replace(r"\pi", "π"))
    answer.same("unit added", rf"{answer.reference} \text{{ square units}}")
    value = a * pi + b * (sqrt(c) if root else 1)
    answer.differs("rounded", f"{value:.4f}", f"{value:.10f}", str(value))
    answer.differs("sign", first + signed(-b, root), f"-{first}" + signed(b, root))
    answer.differs("number", term(a + 1, r"\pi") + signed(b, root), first, second)
    answer.differs("pi dropped", term(a) + signed(b, root), first + signed(b, r"\pi"))
    return answer


def nested_root(rng: Random) -> Answer:
    a, b = rng.randint(6, 30), rng.choice(SQUAREFREE[:6])
    inner = rf"{a} + \sqrt{{{b}}}"
    answer = Answer("nested root", rf"\sqrt{{{inner}}}")
    answer.same("order", rf"\sqrt{{\sqrt{{{b}}} + {a}}}")
    answer.same("power", rf"({inner})^{{1/2}}", rf"({inner})^{{\frac{{1}}{{2}}}}")
    answer.same("inner root", rf"\sqrt{{\frac{{{2 * a} + \sqrt{{{4 * b}}}}}{{2}}}}")
    answer.differs("rounded", f"{sqrt(a + sqrt(b)):.8f}", f"{sqrt(a + sqrt(b)):.3f}")
    answer.differs("root dropped", inner, rf"\sqrt{{{a}}} + \sqrt{{{b}}}", rf"\sqrt{{{a + b}}}")
    answer.differs("sign", rf"\sqrt{{{a} - \sqrt{{{b}}}}}", rf"-\sqrt{{{inner}}}")
    answer.differs("number", rf"\sqrt{{{a + 1} + \sqrt{{{b}}}}}")
    return answer


def points(rng: Random) -> Answer:
    """Solutions of a system: the order of the points is free, that of coordinates is not."""
    a, b, c, d = rng.sample(range(-20, 21), 4)
    answer = Answer("list of points", f"({a},{b}), ({c},{d})")
    answer.same("order", f"({c},{d}), ({a},{b})", f"({c}, {d}), ({a}, {b})")
    answer.same("spacing", f"({a}, {b}),({c}, {d})", rf"({a},{b}) \text{{ and }} ({c},{d})")
    answer.same("sized", rf"\left({a}, {b}\right), \left({c}, {d}\right)")
    answer.differs("coordinates", f"({b},{a}), ({c},{d})", f"({a},{d}), ({c},{b})")
    answer.differs("one dropped", f"({a},{b})", f"({c},{d})")
    answer.differs("parentheses dropped", f"{a},{b}, {c},{d}", f"({a},{b},{c},{d})")
    answer.differs("number", f"({a},{b}), ({c},{d + 50})", f"({a},{b}), ({c},{d}), ({a},{d})")
    return answer


def polar(rng: Random) -> Answer:
    r, angle = rng.randint(2, 12), Fraction(rng.randint(1, 11), rng.choice((2, 3, 4, 6)))
    p, q = angle.as_integer_ratio()
    top = term(p, r"\pi")
    theta = top if q == 1 else rf"\frac{{{top}}}{{{q}}}"
    answer = Answer("polar point", rf"\left( {r}, {theta} \right)")
    answer.same("sized", f"({r}, {theta})", f"({r},{theta})")
    answer.same("factor before it", rf"({r}, {fraction(angle)}\pi)")
    answer.same("slash", rf"({r}, {term(p, 'π')}/{q})" if q > 1 else rf"({r}, {term(p, 'π')})")
    answer.differs("order", f"({theta}, {r})", f"{r}, {theta}", f"[{r}, {theta}]")
    answer.differs("rounded", f"({r}, {float(angle) * pi:.6f})")
    answer.differs("number", f"({r + 1}, {theta})", f"(-{r}, {theta})", f"({r}, -{theta})")
    answer.differs("pi dropped", f"({r}, {fraction(angle)})", theta, str(r))
    return answer


def repeating(rng: Random) -> Answer:
    digits = rng.choice(("3", "6", "1", "27", "36", "45", "142857", "09", "18"))
    value = Fraction(int(digits), 10 ** len(digits) - 1)
    answer = Answer("repeating decimal", rf"0.\overline{{{digits}}}")
    answer.same("fraction", fraction(value), f"{value.numerator}/{value.denominator}")
    answer.same("written on", rf"0.{digits}\overline{{{digits}}}", rf".\overline{{{digits}}}")
    answer.differs("cut", f"0.{digits * 2}", f"0.{digits}", f"0.{digits * 6}")
    answer.differs("other digits", rf"0.0\overline{{{digits}}}", rf"1.\overline{{{digits}}}")
    if rng.random() < 0.5:
        answer.same("overline", answer.reference)
        answer.reference = fraction(value)
    return answer


def letters(rng: Random) -> Answer:
    """Powers and roots of letters, exponentials, absolute values."""
    a, n = rng.randint(2, 9), rng.randint(3, 9)
    kind = rng.randrange(4)
    square_free = rng.choice((2, 3, 5, 6, 7, 10))
    if kind == 0:
        answer = Answer("power of a letter", rf"{a}x^{{{n}}}y")
        answer.same("order", rf"{a}yx^{{{n}}}", rf"x^{{{n}}}y \cdot {a}", rf"{a} x^{n} y")
        answer.differs("exponent", rf"{a}x^{{{n + 1}}}y", rf"{a}xy^{{{n}}}", rf"{a}x^{{{n}}}y^2")
        answer.differs("number", rf"{a + 1}x^{{{n}}}y", rf"x^{{{n}}}y", rf"{a}x^{{{n}}}")
    elif kind == 1:
        answer = Answer("exponential", rf"{a}e^{{{n}x}}")
        answer.same("order", rf"e^{{{n}x}} \cdot {a}", rf"{a} \cdot e^{{{n}x}}")
        answer.same("power of a power", rf"{a}(e^x)^{{{n}}}")
        answer.differs("exponent", rf"{a}e^{{{n + 1}x}}", rf"{a}e^{{-{n}x}}", rf"{a}e^{n}x")
        answer.differs("number", rf"{a + 1}e^{{{n}x}}", rf"e^{{{n}x}}", rf"{a}x^{{{n}e}}")
    elif kind == 2:
        answer = Answer("root of a letter", rf"{a}x\sqrt{{{square_free}x}}")
        answer.same(
            "order", rf"{a}\sqrt{{{square_free}x}} \cdot x", rf"{a} x \sqrt{{{square_free} x}}"
        )
        answer.same("root split", rf"{a}\sqrt{{{square_free}}} \cdot x\sqrt{{x}}")
        answer.differs(
            "radicand", rf"{a}x\sqrt{{{square_free + 1}x}}", rf"{a}x\sqrt{{{square_free}}}"
        )
        answer.differs("x dropped", rf"{a}\sqrt{{{square_free}x}}")
        answer.differs(
            "number", rf"{a + 1}x\sqrt{{{square_free}x}}", rf"-{a}x\sqrt{{{square_free}x}}"
        )
    else:
        answer = Answer("absolute value", rf"|x - {a}|")
        answer.same("order", rf"|{a} - x|", rf"\left|x-{a}\right|", rf"\lvert x - {a} \rvert")
        answer.differs("bars dropped", rf"x - {a}", rf"{a} - x", rf"(x - {a})")
        answer.differs("sign", rf"|x + {a}|", rf"-|x - {a}|", rf"|x| - {a}")
    return answer


def fraction_polynomial(rng: Random) -> Answer:
    q, r = rng.choice((2, 3, 4, 5)), rng.choice((3, 7, 6))
    p = rng.choice([k for k in range(1, 10) if gcd(k, q) == 1])
    b = nonzero(rng, 9)
    answer = Answer("polynomial", rf"\frac{{{p}}}{{{q}}}x^2 + \frac{{x}}{{{r}}}{signed(b)}")
    answer.same("order", rf"\frac{{x}}{{{r}}} + \frac{{{p}}}{{{q}}}x^2{signed(b)}")
    answer.same("fraction", rf"\frac{{{p}x^2}}{{{q}}} + \frac{{1}}{{{r}}}x{signed(b)}")
    whole = f"{term(p * r, 'x^2')}{signed(q, 'x')}{signed(b * q * r)}"
    answer.same("one denominator", rf"\frac{{{whole}}}{{{q * r}}}")
    answer.differs("numerator", rf"\frac{{{p + 1}}}{{{q}}}x^2 + \frac{{x}}{{{r}}}{signed(b)}")
    answer.differs("denominator", rf"\frac{{{p}}}{{{q}}}x^2 + \frac{{x}}{{{r + 1}}}{signed(b)}")
    answer.differs("place of x", rf"\frac{{{p}}}{{{q}x^2}} + \frac{{x}}{{{r}}}{signed(b)}")
    answer.differs("sign", rf"\frac{{{p}}}{{{q}}}x^2 - \frac{{x}}{{{r}}}{signed(b)}", whole)
    return answer
