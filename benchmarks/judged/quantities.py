r"""Numbers and what is counted or measured: integers to percent, units, money, times and bases."""

from __future__ import annotations

from fractions import Fraction
from random import Random

from judged.forms import (
    Answer,
    fraction,
    grouped,
    other_numbers,
    proper_fraction,
    rounded,
    terminating,
    written,
)

THINGS = ("apples", "books", "students", "pages", "cookies", "cards", "days", "hours", "miles")
UNICODE = {(1, 2): "½", (1, 3): "⅓", (2, 3): "⅔", (1, 4): "¼", (3, 4): "¾"}


def integer(rng: Random) -> Answer:
    return integer_forms(Answer("integer", ""), _some_integer(rng), rng)


def _some_integer(rng: Random) -> int:
    digits = rng.choice((1, 1, 2, 2, 3, 4, 5, 7))
    return rng.randint(10 ** (digits - 1), 10**digits - 1) * rng.choice((1, 1, 1, -1))


def integer_forms(answer: Answer, n: int, rng: Random) -> Answer:
    """Forms of an integer; the answer's reference is set if it has none."""
    answer.reference = answer.reference or str(n)
    thing = rng.choice(THINGS)
    answer.same("itself", str(n), f" {n} ", rf"{{{n}}}")
    answer.same("zeros after the point", f"{n}.0", f"{n}.00", f"{n}.")
    answer.same("variable before it", f"x = {n}", f"x={n}", f"n = {n}")
    answer.same("markup", rf"\text{{{n}}}", rf"\mathbf{{{n}}}", rf"\mathrm{{{n}}}")
    answer.same("fraction", rf"\frac{{{2 * n}}}{{2}}", rf"\frac{{{n}}}{{1}}")
    answer.same("unit added", rf"{n} \text{{ {thing}}}", f"{n} {thing}", rf"{n}\text{{ {thing}}}")
    answer.same("money added", f"{n} dollars", rf"{n} \text{{ dollars}}")
    if n > 0:
        answer.same("plus sign", f"+{n}")
        answer.same("money added", rf"\${n}", rf"\$ {n}.00", f"€{n}")
    else:
        answer.same("minus sign", f"\N{MINUS SIGN}{-n}", f"- {-n}")
    if abs(n) > 999:
        answer.same("thousands", *(grouped(n, s) for s in (",", "{,}", r",\!", r"\,", r"\ ")))
    for kind, other in other_numbers(n):
        answer.differs(kind, str(other))
    answer.differs("decimal beside it", f"{n}.5", f"{n}.01", f"{n}.0001")
    _left_to_the_reader(answer, n, rng)
    answer.differs("more than one", f"{n}, {n + 1}", rf"{n} \text{{ or }} {n + 1}", f"{n};{n + 2}")
    answer.differs("plus-minus", rf"\pm {n}" if n > 0 else rf"\pm {-n}")
    answer.differs("quantifier", rf"{n}\text{{ million}}", f"{n} percent", rf"{n}\%")
    answer.differs("quantifier", rf"{n} \text{{ or more}}", f"more than {n}", rf"> {n}")
    answer.differs("quantifier", rf"\text{{not }} {n}", rf"{n} \text{{ thousand}}", f"{n} dozen")
    answer.differs("other type", f"({n}, {n + 1})", rf"\{{{n}, {n + 1}\}}", rf"[{n}, {n + 1}]")
    answer.differs("other type", f"{n}x", rf"{n}\pi", rf"{n}i")
    if abs(n) > 1:
        answer.differs("upside down", rf"\frac{{1}}{{{n}}}", f"1/{n}")
    if n > 1:
        answer.differs("power", f"{n}^2", rf"\sqrt{{{n}}}", f"{n}^{{{n}}}")
        answer.differs("factorial", f"{n}!" if n > 2 else f"{n + 2}!")
    answer.differs("unit added to another number", f"{n + 1} {thing}", rf"\${n - 1}")
    return answer


def _left_to_the_reader(answer: Answer, n: int, rng: Random) -> None:
    a = rng.randint(1, 40)
    b = n - a
    if b > 0:
        answer.differs("sum", f"{a}+{b}", f"{a} + {b}", rf"{a}\,+\,{b}", f"{b}--{a}", f"x={a}+{b}")
        answer.differs("side by side", rf"{a}\,{b}", rf"{a}\quad {b}", rf"{a} \; {b}", f"{a} {b}")
        answer.differs("sum with unit", rf"{a}+{b} \text{{ apples}}")
    answer.differs("difference", f"{n + a}-{a}", f"{n + a} - {a}", rf"{n + a} \text{{ minus }} {a}")
    divisor = next((d for d in range(2, 10) if n % d == 0 and abs(n) > d), None)
    if divisor:
        factor = n // divisor
        answer.differs(
            "product",
            rf"{divisor} \cdot {factor}",
            rf"{divisor} \times {factor}",
            f"{divisor}*{factor}",
            f"({divisor})({factor})",
        )
    answer.differs("quotient", rf"{3 * n} \div 3")
    answer.differs("equation that is false", f"{n + 1} = {n}", f"{n} = {n + 1}", f"{n} = {n} + 1")


def fractional(rng: Random) -> Answer:
    value = proper_fraction(rng)
    style = rng.choice((r"\frac", r"\frac", r"\dfrac"))
    answer = Answer("fraction", fraction(value, style))
    p, q = value.numerator, value.denominator
    sign = "-" if p < 0 else ""
    answer.same("other fraction command", *(fraction(value, c) for c in (r"\dfrac", r"\tfrac")))
    answer.same("slash", f"{p}/{q}", f"{p} / {q}", rf"{{{p} \over {q}}}")
    answer.same("sign in the numerator", rf"\frac{{{p}}}{{{q}}}", rf"\frac {{{p}}} {{{q}}}")
    answer.same("unreduced", rf"\frac{{{2 * p}}}{{{2 * q}}}", f"{3 * p}/{3 * q}")
    answer.same("variable before it", f"x = {fraction(value)}", f"x={p}/{q}")
    answer.same("unit added", rf"{fraction(value)} \text{{ cups}}", f"{p}/{q} miles")
    if abs(p) < 10 and q < 10:
        answer.same("bare arguments", rf"{sign}\frac{abs(p)}{q}", rf"{sign}\frac {abs(p)} {q}")
    if (abs(p), q) in UNICODE:
        answer.same("one character", sign + UNICODE[abs(p), q])
    decimal, percent = terminating(value), terminating(100 * value)
    if decimal:
        answer.same("exact decimal", decimal, decimal + "0", f"x = {decimal}")
        answer.same("percent", rf"{percent}\%", f"{percent}%")
        answer.differs("percent for a number", rf"{decimal}\%")
    else:
        near, near_percent = rounded(value, 6), rounded(100 * value, 4)
        answer.differs("rounded", near, rf"{near}\,", f"x={near}", rounded(value, 2))
        answer.differs("rounded", rf"{near_percent}\%", rounded(value, 12))
        answer.differs("rounded", rf"\approx {near}")
    if abs(p) > q:
        _mixed_forms(answer, value)
    answer.differs("upside down", fraction(1 / value), f"{q}/{p}")
    answer.differs("numerator", fraction(value + Fraction(1, q)), f"{p - 1}/{q}")
    answer.differs("denominator", fraction(Fraction(p, q + 1)), rf"\frac{{{p}}}{{{10 * q}}}")
    answer.differs("sign", fraction(-value), f"{-p}/{q}")
    answer.differs("part of it", str(p), str(q))
    answer.differs("sum", rf"\frac{{{p - 1}}}{{{q}}} + \frac{{1}}{{{q}}}")
    answer.differs("other type", f"({p}, {q})", f"{p}, {q}")
    return answer


def _mixed_forms(answer: Answer, value: Fraction) -> None:
    sign = "-" if value < 0 else ""
    whole, rest = divmod(abs(value.numerator), value.denominator)
    q = value.denominator
    answer.same("mixed in LaTeX", rf"{sign}{whole}\frac{{{rest}}}{{{q}}}")
    answer.same(
        "mixed in LaTeX",
        rf"{sign}{whole} \frac{{{rest}}}{{{q}}}",
        rf"{sign}{whole}\tfrac{{{rest}}}{{{q}}}",
    )
    answer.same("mixed in plain text", f"{sign}{whole} {rest}/{q}")
    answer.differs("another mixed number", f"{sign}{whole + 1} {rest}/{q}")
    answer.differs("another mixed number", rf"{sign}{whole}\frac{{{rest}}}{{{q + 1}}}")


def mixed(rng: Random) -> Answer:
    whole, q = rng.randint(1, 20), rng.randint(2, 12)
    part = Fraction(rng.randint(1, q - 1), q)
    value = whole + part
    answer = Answer("mixed number", rf"{whole}{fraction(part)}")
    answer.same("improper fraction", fraction(value), f"{value.numerator}/{value.denominator}")
    answer.same("mixed in plain text", f"{whole} {part.numerator}/{part.denominator}")
    answer.same("spacing", rf"{whole} {fraction(part)}", rf"{whole}\,{fraction(part)}")
    answer.same("unit added", rf"{whole}{fraction(part)} \text{{ hours}}")
    if decimal := terminating(value):
        answer.same("exact decimal", decimal)
    else:
        answer.differs("rounded", rounded(value, 6), rounded(value, 3))
    answer.differs("read as a product", fraction(whole * part))
    answer.differs("whole part", f"{whole + 1}{fraction(part)}", str(whole))
    answer.differs("fractional part", fraction(part), rf"{whole}{fraction(part / 2)}")
    if part.denominator != 10:
        answer.differs("joined", f"{whole}{part.numerator}/{part.denominator}")
    return answer


def decimal(rng: Random) -> Answer:
    places = rng.randint(1, 4)
    scaled = rng.randint(1, 10 ** rng.randint(1, 4)) * 10 + rng.randint(1, 9)
    value = Fraction(scaled, 10**places) * rng.choice((1, 1, 1, -1))
    text = terminating(value)
    if text is None or "." not in text:
        return decimal(rng)
    answer = Answer("decimal", text)
    answer.same("zeros", text + "0", text + "00")
    if abs(value) < 1:
        answer.same("no zero before the point", text.replace("0.", ".", 1))
        answer.reference = rng.choice((text, text.replace("0.", ".", 1)))
    answer.same("fraction", fraction(value), f"{value.numerator}/{value.denominator}")
    answer.same("variable before it", f"x = {text}")
    answer.same("unit added", rf"{text} \text{{ cm}}", f"{text} km", rf"\${text}")
    answer.differs("last digit", written(value + Fraction(1, 10**places)))
    answer.differs("point moved", written(value * 10), written(value / 10))
    answer.differs("sign", written(-value))
    answer.differs("cut", written(Fraction(int(value * 10 ** (places - 1)), 10 ** (places - 1))))
    answer.differs("a digit more", text + "1", text + "05")
    answer.differs("point for comma", text.replace(".", ", "))
    return answer


def scientific(rng: Random) -> Answer:
    factor, exponent = Fraction(rng.randint(11, 99), 10), rng.choice((-6, -4, -3, 3, 4, 5, 7, 9))
    mantissa = written(factor)
    answer = Answer("scientific", rf"{mantissa} \times 10^{{{exponent}}}")
    answer.same(
        "other product sign", rf"{mantissa}\cdot 10^{{{exponent}}}", f"{mantissa}e{exponent}"
    )
    answer.same("written out", written(factor * Fraction(10) ** exponent))
    answer.same("shifted", rf"{written(10 * factor)} \times 10^{{{exponent - 1}}}")
    answer.differs("exponent", rf"{mantissa} \times 10^{{{exponent + 1}}}")
    answer.differs("exponent", rf"{mantissa} \times 10^{{{-exponent}}}", mantissa)
    answer.differs("mantissa", rf"{written(factor + 1)} \times 10^{{{exponent}}}")
    answer.differs("base", rf"{mantissa} \times 2^{{{exponent}}}")
    return answer


def power(rng: Random) -> Answer:
    """Exact numbers, tiny and huge, that no double tells apart."""
    base, exponent = rng.choice((2, 3, 5, 7, 10)), rng.randint(20, 110)
    answer = Answer("power", rf"\frac{{1}}{{{base}^{{{exponent}}}}}")
    answer.same("negative exponent", rf"{base}^{{-{exponent}}}", rf"1/{base}^{{{exponent}}}")
    answer.same("power of a fraction", rf"\left(\frac{{1}}{{{base}}}\right)^{{{exponent}}}")
    answer.differs(
        "exponent", rf"\frac{{1}}{{{base}^{{{exponent - 1}}}}}", rf"{base}^{{-{exponent + 1}}}"
    )
    answer.differs("sign", rf"-\frac{{1}}{{{base}^{{{exponent}}}}}", rf"{base}^{{{exponent}}}")
    answer.differs("rounded to zero", "0", "0.0", rf"\frac{{0}}{{{base}^{{{exponent}}}}}")
    answer.differs("numerator", rf"\frac{{2}}{{{base}^{{{exponent}}}}}" if base != 2 else "2^{-3}")
    return answer


def huge(rng: Random) -> Answer:
    base, exponent = rng.choice((2, 3, 5, 7)), rng.randint(20, 45)
    answer = Answer("power", rf"{base}^{{{exponent}}}")
    answer.same("written out", str(base**exponent), grouped(base**exponent, ","))
    answer.differs("exponent", rf"{base}^{{{exponent + 1}}}", rf"{base}^{{{exponent - 1}}}")
    answer.differs(
        "base", rf"{base + 1}^{{{exponent}}}", rf"{base}{exponent}", f"{base * exponent}"
    )
    answer.differs("written out", str(base**exponent + 1), str(base**exponent - 1))
    answer.differs("sign", rf"-{base}^{{{exponent}}}", rf"{base}^{{-{exponent}}}")
    return answer


def factorial(rng: Random) -> Answer:
    n = rng.randint(12, 30)
    value = 1
    for k in range(2, n + 1):
        value *= k
    answer = Answer("factorial", rf"\frac{{1}}{{{n}!}}")
    answer.same("number", rf"\frac{{1}}{{{value}}}", f"1/{n}!")
    answer.differs("factorial", rf"\frac{{1}}{{{n - 1}!}}", rf"\frac{{1}}{{{n + 1}!}}", "0")
    answer.differs("number", rf"\frac{{1}}{{{value + 1}}}", rf"\frac{{2}}{{{n}!}}", rf"{n}!")
    return answer
