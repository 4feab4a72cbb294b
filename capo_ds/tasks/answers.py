r"""Reading a final answer: `\boxed{...}` extraction and exact comparison of numbers.

Completions are untrusted text: nothing here evaluates them, and long numbers or large exponents
are refused before any arithmetic is done on them.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

BOX = r"\boxed"
MAX_NUMBER_LENGTH = 64  # characters; longer text is compared as text
MAX_EXPONENT = 64  # |exponent| of scientific notation; 1e999999999 must not build that integer

# Digits with optional thousands separators, an optional decimal part, an optional exponent.
_DECIMAL = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+"
_NUMBER = re.compile(rf"(?P<sign>[+-]?)(?P<decimal>{_DECIMAL})(?:[eE](?P<exponent>[+-]?[0-9]+))?")
_RATIO = re.compile(r"(?P<sign>[+-]?)(?P<numerator>[0-9]+) ?/ ?(?P<denominator>[0-9]+)")


@dataclass(frozen=True)
class Box:
    r"""One `\boxed{content}`; `start` and `end` (exclusive) are character offsets of the whole."""

    content: str
    start: int
    end: int


def find_boxes(text: str) -> list[Box]:
    r"""All outermost `\boxed{...}` with balanced braces, in order.

    Braces escaped as `\{` and `\}` are text. A box never closed is left out; so is one whose
    backslash is itself escaped (`\\boxed` is a line break in LaTeX, followed by a word).
    """
    boxes, position = [], 0
    while (start := text.find(BOX + "{", position)) >= 0:
        end = None if _is_escaped(text, start) else _closing_brace(text, start + len(BOX))
        if end is None:
            position = start + len(BOX)
        else:
            boxes.append(Box(text[start + len(BOX) + 1 : end], start, end + 1))
            position = end + 1
    return boxes


def parse_number(text: str) -> Fraction | None:
    """The exact value of an integer, decimal, scientific number or ratio; None for anything else.

    `27`, `27.0`, `+27`, `1,234`, `1.5e3` and `3/4` are numbers; `12,34`, `1/0` and `0x10` are not.
    Text longer than MAX_NUMBER_LENGTH or an exponent beyond MAX_EXPONENT is not read as a number.
    """
    text = text.strip().replace("\N{MINUS SIGN}", "-")
    if len(text) > MAX_NUMBER_LENGTH:
        return None
    if match := _NUMBER.fullmatch(text):
        exponent = int(match["exponent"] or 0)
        if abs(exponent) > MAX_EXPONENT:
            return None
        value = Fraction(match["decimal"].replace(",", "")) * Fraction(10) ** exponent
        return -value if match["sign"] == "-" else value
    if (match := _RATIO.fullmatch(text)) and int(match["denominator"]) != 0:
        value = Fraction(int(match["numerator"]), int(match["denominator"]))
        return -value if match["sign"] == "-" else value
    return None


def same_answer(given: str, reference: str) -> bool:
    """Whether two answers are equal: as exact numbers, or as text when neither is a number."""
    given_value, reference_value = parse_number(given), parse_number(reference)
    if given_value is None and reference_value is None:
        return " ".join(given.split()) == " ".join(reference.split())
    return given_value == reference_value


def _is_escaped(text: str, position: int) -> bool:
    """Whether an odd number of backslashes stands directly before `position`."""
    before = text[:position]
    return (len(before) - len(before.rstrip("\\"))) % 2 == 1


def _closing_brace(text: str, opening: int) -> int | None:
    """Offset of the brace that closes the one at `opening`, or None."""
    depth, position = 0, opening
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 1  # the next character is escaped
        elif character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return position
        position += 1
    return None
