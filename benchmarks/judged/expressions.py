r"""Polynomials, quotients of them, equations: built from coefficients and roots."""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd
from random import Random

from judged.forms import Answer
from judged.symbols import nonzero, signed, term


def polynomial(coefficients: Mapping[str, int]) -> str:
    """The sum of terms in the order given; monomial "" is 1; coefficients of 0 are left out."""
    text = ""
    for monomial, number in coefficients.items():
        if number:
            text += signed(number, monomial) if text else term(number, monomial)
    return text or "0"


def changed(coefficients: Mapping[str, int], monomial: str, by: int) -> str:
    return polynomial({**coefficients, monomial: coefficients[monomial] + by})


def reversed_terms(coefficients: Mapping[str, int]) -> str:
    return polynomial(dict(reversed(list(coefficients.items()))))


def linear(rng: Random) -> Answer:
    x = rng.choice("xytnk")
    a, b = nonzero(rng, 12), nonzero(rng, 20)
    terms = {x: a, "": b}
    answer = Answer("linear expression", polynomial(terms))
    _same_polynomial(answer, terms, x)
    g = gcd(a, b)
    if g > 1:
        answer.same("factored", f"{g}({polynomial({x: a // g, '': b // g})})")
    _other_polynomials(answer, terms, x)
    answer.differs("parts changed", polynomial({x: b, "": a})) if a != b else None
    answer.differs("equation", f"{polynomial(terms)} = 0", rf"{polynomial(terms)} > 0")
    return answer


def quadratic(rng: Random) -> Answer:
    x = rng.choice("xxyt")
    a, r, s = rng.choice((1, 1, 2, 3)), nonzero(rng, 9), nonzero(rng, 9)
    if r == -s:
        s += 10
    terms = {f"{x}^2": a, x: -a * (r + s), "": a * r * s}
    answer = Answer("polynomial", polynomial(terms))
    _same_polynomial(answer, terms, x)
    first, second = f"({x}{signed(-r)})", f"({x}{signed(-s)})"
    front = "" if a == 1 else str(a)
    answer.same("factored", front + first + second, front + second + first)
    answer.same("factored", front + rf"\left({first[1:-1]}\right)\left({second[1:-1]}\right)")
    if rng.random() < 0.4:
        answer.reference = front + first + second
        answer.same("expanded", polynomial(terms), reversed_terms(terms))
        answer.differs("roots", front + f"({x}{signed(-r)})({x}{signed(s)})")
        answer.differs("factor dropped", front + first, front + first + "^2" if r != s else first)
    _other_polynomials(answer, terms, x)
    answer.differs("roots instead", f"{r}, {s}", f"{x} = {r}, {x} = {s}")
    return answer


def cubic(rng: Random) -> Answer:
    terms = {f"x^{n}" if n > 1 else ("x" if n else ""): nonzero(rng, 9) for n in (5, 3, 2, 1, 0)}
    answer = Answer("polynomial", polynomial(terms))
    _same_polynomial(answer, terms, "x")
    _other_polynomials(answer, terms, "x")
    answer.differs("exponent", answer.reference.replace("x^5", "x^4"))
    answer.differs("exponent", answer.reference.replace("x^3", "x^{13}"))
    return answer


def two_variables(rng: Random) -> Answer:
    x, y = rng.choice((("x", "y"), ("a", "b"), ("m", "n")))
    a, b, c = rng.randint(1, 9), nonzero(rng, 9), nonzero(rng, 9)
    terms = {f"{x}^2": a, f"{x}{y}": b, f"{y}^2": c}
    if rng.random() < 0.5:
        terms = {x: a, y: b, "": c}
    answer = Answer("two variables", polynomial(terms))
    _same_polynomial(answer, terms, x)
    answer.same("order of factors", answer.reference.replace(f"{x}{y}", f"{y}{x}"))
    _other_polynomials(answer, terms, x)
    keys = list(terms)
    if a != c:
        answer.differs("variables changed", polynomial({keys[0]: c, keys[1]: b, keys[2]: a}))
    k = rng.randint(2, 9)
    if rng.random() < 0.4:
        answer = Answer("two variables", f"({x} + {y})({x} - {k}{y})")
        expanded = {f"{x}^2": 1, f"{x}{y}": 1 - k, f"{y}^2": -k}
        answer.same("expanded", polynomial(expanded), reversed_terms(expanded))
        answer.same("order of factors", f"({x} - {k}{y})({x} + {y})", f"({y}+{x})({x}-{k}{y})")
        answer.differs("sign", f"({x} - {y})({x} + {k}{y})", f"({x} - {y})({x} - {k}{y})")
        answer.differs("variables changed", f"({y} + {x})({y} - {k}{x})")
        answer.differs("coefficient", *(changed(expanded, m, 1) for m in expanded))
        answer.differs("factor dropped", f"{x} + {y}", f"({x} + {y})^2")
    return answer


def _same_polynomial(answer: Answer, terms: Mapping[str, int], x: str) -> None:
    text = polynomial(terms)
    answer.same("order", reversed_terms(terms))
    answer.same("spacing", text.replace(" ", ""), text.replace(" ", "  "))
    if len(terms) == 2 or not any(x in key and len(key) == 2 and key[1].isalpha() for key in terms):
        answer.same("name before it", f"f({x}) = {text}")
    answer.same("braces", text.replace("^2", "^{2}"))
    pieces = text.split(" ", 1)
    if len(pieces[0]) > 1 and pieces[0][0].isdigit() and pieces[0][1].isalpha():
        answer.same("product sign", rf"{pieces[0][0]} \cdot {pieces[0][1:]} {pieces[1]}")
        answer.same("product sign", f"{pieces[0][0]}*{pieces[0][1:]} {pieces[1]}")


def _other_polynomials(answer: Answer, terms: Mapping[str, int], x: str) -> None:
    for monomial in terms:
        answer.differs("coefficient", changed(terms, monomial, 1), changed(terms, monomial, -1))
        answer.differs("sign", polynomial({**terms, monomial: -terms[monomial]}))
        answer.differs("term dropped", polynomial({**terms, monomial: 0}))
    other = "z" if x != "z" else "w"
    answer.differs("variable", polynomial(terms).replace(x, other))
    answer.differs("a value for it", str(sum(terms.values())))


def rational_function(rng: Random) -> Answer:
    a, b, c = nonzero(rng, 9), nonzero(rng, 9), nonzero(rng, 9)
    if a == b:
        b += 10
    top, bottom, whole = _binomial(1, a), _binomial(1, b), _binomial(c, c * a)
    front = "" if c == 1 else ("-" if c == -1 else str(c))
    numerator = f"{front}({top})" if front else top
    answer = Answer("rational function", rf"\frac{{{whole}}}{{{bottom}}}")
    answer.same("factored", rf"\frac{{{numerator}}}{{{bottom}}}")
    answer.same("factored", rf"{front}\frac{{{top}}}{{{bottom}}}")
    answer.same("slash", f"({whole})/({bottom})")
    rest = c * (a - b)
    answer.same("divided", rf"{c} {'-' if rest < 0 else '+'} \frac{{{abs(rest)}}}{{{bottom}}}")
    turned = polynomial({"": c * a, "x": c}), polynomial({"": b, "x": 1})
    answer.same("order", rf"\frac{{{turned[0]}}}{{{turned[1]}}}")
    answer.differs("upside down", rf"\frac{{{bottom}}}{{{whole}}}")
    answer.differs("part of it", whole, str(c))
    answer.differs("numerator", rf"\frac{{{_binomial(c, c * a + 1)}}}{{{bottom}}}")
    answer.differs("denominator", rf"\frac{{{whole}}}{{{_binomial(1, b + 11)}}}")
    answer.differs("sign", rf"-\frac{{{whole}}}{{{bottom}}}")
    answer.differs("no parentheses", f"{whole}/{bottom}")
    return answer


def _binomial(a: int, b: int, x: str = "x") -> str:
    return polynomial({x: a, "": b})


def line(rng: Random) -> Answer:
    m, b = nonzero(rng, 9), nonzero(rng, 15)
    side = _binomial(m, b)
    answer = Answer("equation", f"y = {side}")
    answer.same("spacing", f"y={side.replace(' ', '')}")
    answer.same("sides changed", f"{side} = y")
    answer.same("order", f"y = {polynomial({'': b, 'x': m})}")
    answer.same("moved", f"{polynomial({'y': 1, 'x': -m})} = {b}")
    answer.same("moved", f"{polynomial({'x': m, 'y': -1, '': b})} = 0")
    answer.same("multiplied", f"2y = {_binomial(2 * m, 2 * b)}")
    answer.differs("slope", f"y = {_binomial(m + 1, b)}", f"y = {_binomial(-m, b)}")
    answer.differs("intercept", f"y = {_binomial(m, b - 1)}", f"y = {term(m, 'x')}")
    if m != -1:
        answer.differs("variables changed", f"x = {_binomial(m, b, 'y')}")
    answer.differs("moved with the wrong sign", f"{polynomial({'y': 1, 'x': m})} = {b}")
    answer.differs("other relation", f"y > {side}", rf"y \ne {side}", rf"y \le {side}")
    answer.differs("other type", str(m), str(b), f"({m}, {b})")
    return answer


def circle(rng: Random) -> Answer:
    a, b, r = nonzero(rng, 9), nonzero(rng, 9), rng.randint(2, 9)
    first, second = f"(x{signed(-a)})^2", f"(y{signed(-b)})^2"
    expanded = {"x^2": 1, "x": -2 * a, "y^2": 1, "y": -2 * b, "": a * a + b * b - r * r}
    answer = Answer("equation", f"{first} + {second} = {r * r}")
    answer.same("order", f"{second} + {first} = {r * r}", f"{first} + {second} - {r * r} = 0")
    answer.same("expanded", f"{polynomial(expanded)} = 0")
    answer.same("sides changed", f"{r * r} = {first} + {second}", f"{first}+{second}={r}^2")
    answer.differs("radius", f"{first} + {second} = {r}", f"{first} + {second} = {r * r + 1}")
    answer.differs("centre", f"(x{signed(a)})^2 + {second} = {r * r}")
    answer.differs("sign", f"{first} - {second} = {r * r}", f"{first} + {second} = -{r * r}")
    answer.differs("part of it", f"{first} = {r * r}", str(r * r), f"{first} + {second}")
    answer.differs("constant", f"{polynomial({**expanded, '': expanded[''] + 1})} = 0")
    return answer
