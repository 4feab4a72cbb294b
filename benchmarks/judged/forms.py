r"""What a generated answer is, and how numbers are written in it.

An `Answer` is a reference as data sets publish it, texts that mean the same, and texts that do not.
Both kinds are built from the value that the reference was built from; no grader is asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from random import Random


@dataclass
class Answer:
    """right, wrong: (kind of rewriting or perturbation, text), in the order in which they came."""

    family: str
    reference: str
    right: list[tuple[str, str]] = field(default_factory=list)
    wrong: list[tuple[str, str]] = field(default_factory=list)

    def same(self, kind: str, *texts: str) -> None:
        self.right += [(kind, text) for text in texts]

    def differs(self, kind: str, *texts: str) -> None:
        self.wrong += [(kind, text) for text in texts]


@dataclass(frozen=True)
class Pair:
    family: str
    kind: str
    given: str
    reference: str
    equal: bool


def fraction(value: Fraction, command: str = r"\frac") -> str:
    """`\frac{p}{q}`, or the integer."""
    if value.denominator == 1:
        return str(value.numerator)
    sign = "-" if value < 0 else ""
    return rf"{sign}{command}{{{abs(value.numerator)}}}{{{value.denominator}}}"


def grouped(number: int | str, separator: str) -> str:
    """The digits in groups of three."""
    return f"{int(number):,}".replace(",", separator)


def terminating(value: Fraction) -> str | None:
    """The decimal that is the value; None where it has no end within 12 places."""
    for places in range(13):
        scaled = value * 10**places
        if scaled.denominator == 1:
            digits = f"{abs(scaled.numerator):0{places + 1}d}"
            sign = "-" if value < 0 else ""
            whole = digits[: len(digits) - places]
            return f"{sign}{whole}.{digits[len(digits) - places :]}" if places else sign + whole
    return None


def written(value: Fraction) -> str:
    """The decimal that is the value. Raises ValueError where it has no end within 12 places."""
    text = terminating(value)
    if text is None:
        raise ValueError(f"{value} has no decimal of 12 places")
    return text


def rounded(value: Fraction, places: int) -> str:
    """The decimal nearest to the value: not the value, where it needs more places."""
    return written(round(value, places))


def proper_fraction(rng: Random, largest: int = 30) -> Fraction:
    """A fraction that is no integer."""
    while True:
        value = Fraction(rng.randint(1, 3 * largest), rng.randint(2, largest))
        if value.denominator > 1:
            return value * rng.choice((1, 1, 1, -1))


def other_numbers(number: int) -> Iterator[tuple[str, int]]:
    """Integers that are near a number, in value or in writing, and are not it."""
    digits = str(abs(number))
    yield "off by one", number + 1
    yield "off by one", number - 1
    if number:
        yield "sign", -number
        yield "ten times", 10 * number
    if len(digits) > 1:
        swapped = digits[:-2] + digits[-1] + digits[-2]
        if swapped != digits and swapped[0] != "0":
            yield "digits swapped", int(swapped) * (-1 if number < 0 else 1)
        yield "digit dropped", int(digits[:-1]) * (-1 if number < 0 else 1)
    yield "digit doubled", int(digits + digits[-1]) if number else 10
