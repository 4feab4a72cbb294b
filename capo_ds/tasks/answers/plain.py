r"""Reading a final answer that is a plain number, and what is refused unread.

Completions are untrusted text: nothing here evaluates them, and long numbers or large exponents
are refused before any arithmetic is done on them.
"""

import re
from fractions import Fraction

MAX_NUMBER_LENGTH = 64  # characters; longer text is compared as text
MAX_EXPONENT = 64  # |exponent| of scientific notation; 1e999999999 must not build that integer
MAX_ANSWER_LENGTH = 512  # characters; no reference answer of the benchmarks is half as long
MAX_TOWER = 2  # nested exponents: e^{x^2} is read, 5^{5^{5^5}} is not
MAX_DEPTH = 32  # nested braces and parentheses; the parser takes seconds for hundreds

# Digits with optional thousands separators, an optional decimal part, an optional exponent.
_DECIMAL = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+"
_NUMBER = re.compile(rf"(?P<sign>[+-]?)(?P<decimal>{_DECIMAL})(?:[eE](?P<exponent>[+-]?[0-9]+))?")
_RATIO = re.compile(r"(?P<sign>[+-]?)(?P<numerator>[0-9]+) ?/ ?(?P<denominator>[0-9]+)")
# LaTeX that means one of the above; each is replaced before the number is read.
_SEPARATOR = re.compile(r"(?:\{,\}|,\\!|\\[,!;: ])(?=[0-9]{3})")
_FRACTION = re.compile(
    r"(?P<sign>[+-]?) ?\\[dt]?frac ?(?:\{(?P<n>[+-]?[0-9]+)\}|(?P<n1>[0-9])) ?"
    r"(?:\{(?P<d>[0-9]+)\}|(?P<d1>[0-9]))"
)
_SCIENTIFIC = re.compile(
    r"(?P<factor>[+-]?[0-9.]+) ?(?:\\times|\\cdot|\u00d7) ?10\^"
    r"(?:\{(?P<e>[+-]?[0-9]+)\}|(?P<e1>[0-9]))"
)
# More digits than a number may have, an exponent of six digits or more, a tower without braces.
_COSTLY = re.compile(rf"[0-9]{{{MAX_NUMBER_LENGTH + 1}}}|\^\{{?[+-]?[0-9]{{6}}|\^[0-9]+\^")


def parse_number(text: str) -> Fraction | None:
    r"""The exact value of an integer, decimal, scientific number or ratio; None for anything else.

    `27`, `27.0`, `+27`, `1,234`, `1.5e3` and `3/4` are numbers; `12,34`, `1/0` and `0x10` are not.
    So are their usual forms in LaTeX: `1{,}234`, `1,\!234`, `\$27`, `$27$`, `\frac{3}{4}`,
    `\frac34`, `1.5 \times 10^{3}`.
    Text longer than MAX_NUMBER_LENGTH or an exponent beyond MAX_EXPONENT is not read as a number.
    """
    if len(text) > MAX_NUMBER_LENGTH:
        return None
    text = _as_plain(text)
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


def too_costly(answer: str) -> bool:
    """Whether an answer is refused unread: too long, too deep, huge powers, foreign digits."""
    if len(answer) > MAX_ANSWER_LENGTH or _COSTLY.search(answer):
        return True
    depth, tower = _nesting(answer)
    if depth > MAX_DEPTH or tower > MAX_TOWER:
        return True
    return any(character.isdigit() and not character.isascii() for character in answer)


def _nesting(text: str) -> tuple[int, int]:
    """How deep braces and parentheses are nested, and powers in exponents: 2^{3^4} is (1, 2)."""
    depth, tower, heights, before = 0, 0, [0], ""  # heights: powers around each open brace
    for character in text.replace(" ", ""):
        if character == "^":
            tower = max(tower, heights[-1] + 1)
        elif character in "{(":
            heights.append(heights[-1] + (before == "^"))
            depth = max(depth, len(heights) - 1)
        elif character in "})" and len(heights) > 1:
            heights.pop()
        before = character
    return depth, tower


def _as_plain(text: str) -> str:
    """A number in LaTeX as plain text; other text comes back much as it was."""
    text = text.strip().replace("\N{MINUS SIGN}", "-").removesuffix(".")
    if len(text) > 1 and text[0] == text[-1] == "$":
        text = text[1:-1].strip()
    text = text.removeprefix("\\$").removeprefix("$").strip()
    text = _SEPARATOR.sub(",", text)
    if match := _FRACTION.fullmatch(text):
        return f"{match['sign']}{match['n'] or match['n1']}/{match['d'] or match['d1']}"
    if match := _SCIENTIFIC.fullmatch(text):
        return f"{match['factor']}e{match['e'] or match['e1']}"
    return text
