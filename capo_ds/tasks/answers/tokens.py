"""Answers cut into tokens."""

from __future__ import annotations

import re
from typing import NamedTuple

from capo_ds.tasks.answers.latex import closing_brace
from capo_ds.tasks.answers.values import Unreadable

FUNCTIONS = {
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh",
    "log", "ln", "lg", "exp", "gcd", "lcm", "max", "min", "det", "arg", "Re", "Im",
}  # fmt: skip
GREEK = {
    "alpha", "beta", "gamma", "delta", "epsilon", "varepsilon", "zeta", "eta", "theta", "kappa",
    "lambda", "mu", "nu", "xi", "rho", "sigma", "tau", "phi", "varphi", "chi", "psi", "omega",
    "Gamma", "Delta", "Theta", "Lambda", "Sigma", "Phi", "Psi", "Omega", "ell", "hbar",
}  # fmt: skip
SPACES = {",", ";", ":", "!", " ", "quad", "qquad", "thinspace", "enspace", "space", ">"}
STYLES = {
    "text", "textbf", "textit", "textrm", "textsf", "texttt", "textup", "textnormal", "mathrm",
    "mathbf", "mathit", "mathsf", "mathtt", "mathcal", "mbox", "hbox", "emph",
    "operatorname", "mathop",
}  # fmt: skip
# What plain text calls by a word, and other names of the same.
NAMES = {
    "pi": "pi", "infinity": "infty", "inf": "infty", "infty": "infty", "oo": "infty",
    "sqrt": "sqrt", "cup": "cup", "union": "cup",
    "leq": "le", "leqslant": "le", "geq": "ge", "geqslant": "ge", "neq": "ne", "lt": "<",
    "gt": ">", "lbrace": "{", "rbrace": "}", "lbrack": "[", "rbrack": "]", "vert": "|",
    "lvert": "|", "rvert": "|", "mid": "|", "backslash": "setminus", "varnothing": "emptyset",
    "colon": ":", "ast": "*", "arccot": "arccot", "dollar": "$", "lparen": "(", "rparen": ")",
    "div": "div", "cdot": "*", "times": "*", "bullet": "*", "prime": "'", "and": "and",
    "land": "and", "lor": "or", "or": "or", "exponentialE": "e", "imaginaryI": "i",
}  # fmt: skip
_WORDS = (FUNCTIONS - {"min", "max", "Re", "Im", "arg", "det"}) | {
    "pi", "infinity", "inf", "infty", "oo", "sqrt", "union", "and", "or",
    *(name for name in GREEK if len(name) > 3),
}  # fmt: skip
_SEPARATOR = r"(?:\{,\}|,\\!|\\[,;: !]|,\\,)"
_SCALED = re.compile(rf"[0-9]{{1,3}}(?:{_SEPARATOR}[0-9]{{3}})+(?![0-9])(?:\.[0-9]+)?")
_THOUSANDS = re.compile(rf"[0-9]{{1,3}}(?:(?:,|{_SEPARATOR})[0-9]{{3}})+(?:\.[0-9]+)?(?!,?[0-9])")
_NUMBER = re.compile(
    r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,2}(?![0-9A-Za-z.]))?(?:\\overline\s*\{\s*(?P<repeated>[0-9]+)\s*\})?"
)
_ENVIRONMENT = re.compile(r"\\(begin|end)\s*\{([A-Za-z]+\*?)\}(?:\s*\{[clr|]*\})?")
_COMMAND = re.compile(r"\\([A-Za-z]+)\*?|\\(.)", re.DOTALL)
_LETTERS = re.compile(r"[A-Za-z]+")
_PLAIN_WORDS = re.compile(r"[A-Za-z][A-Za-z .'\-/]*")
_SYMBOLS = set("+-*/^_=<>()[]{},;:!|'&%$")


class Token(NamedTuple):
    r"""kind: number, letters, words (of \text), command, begin, end, or mark.

    start: offset; spaced: whether a space stands before it.
    """

    kind: str
    text: str
    spaced: bool = False


def tokenize(text: str, thousands: bool) -> list[Token]:
    """Tokens of a cleaned answer.

    thousands: whether a comma before three digits, outside of brackets, separates thousands.

    Raises:
        Unreadable: at a character or a command that is none of an answer's.
    """
    tokens: list[Token] = []
    position, depth, spaced = 0, 0, False
    while position < len(text):
        character = text[position]
        if character in " \t\n\r~":
            position, spaced = position + 1, True
            continue
        found, end = _token(text, position, thousands and depth == 0)
        for kind, word in found:
            depth += (word in "([" and kind == "mark") - (word in ")]" and kind == "mark")
            tokens.append(Token(kind, word, spaced))
            spaced = False
        spaced = spaced if found else True
        position = end
    return tokens


def _token(text: str, position: int, thousands: bool) -> tuple[list[tuple[str, str]], int]:
    """Kinds and words of the token at `position`, and where it ends; no token for a space."""
    character = text[position]
    if character == "\\":
        return _command(text, position, thousands)
    if match := _numeral(text, position, thousands):
        return [("number", _digits(match))], match.end()
    if match := _LETTERS.match(text, position):
        return [_letters(match[0])], match.end()
    if character in _SYMBOLS:
        two = text[position : position + 2]
        if two in ("<=", ">=", "!=", "=="):
            names = {"<=": "le", ">=": "ge", "!=": "ne", "==": "="}
            return [("mark", names[two])], position + 2
        return [("mark", character)], position + 1
    raise Unreadable(f"the character {character!r} is none of an answer's")


def _numeral(text: str, position: int, thousands: bool) -> re.Match | None:
    if not (text[position].isascii() and (text[position].isdigit() or text[position] == ".")):
        return None
    if thousands and (match := _THOUSANDS.match(text, position)):
        return match
    return _SCALED.match(text, position) or _NUMBER.match(text, position)


def _digits(match: re.Match) -> str:
    """The number in plain digits; a repeated group of decimals follows an r."""
    if match.re is _NUMBER:
        if match["repeated"]:
            return match[0].split("\\")[0] + "r" + match["repeated"]
        return match[0]
    return re.sub(_SEPARATOR + "|,", "", match[0])


def _letters(word: str) -> tuple[str, str]:
    if len(word) == 1:
        return "letters", word
    known = word if word in _WORDS else word.lower() if word.lower() in ("and", "or") else None
    if known is None:
        return "letters", word
    return "command", NAMES.get(known, known)


def _command(text: str, position: int, thousands: bool) -> tuple[list[tuple[str, str]], int]:
    if match := _ENVIRONMENT.match(text, position):
        return [(match[1], match[2])], match.end()
    match = _COMMAND.match(text, position)
    if match is None:
        raise Unreadable("it ends in a backslash")
    name, end = match[1] or match[2], match.end()
    if name in SPACES:
        return [], end
    if name in STYLES:
        return _styled(text, name, end, thousands)
    if name == "\\":
        return [("command", "\\\\")], end
    name = NAMES.get(name, name)
    return [("mark" if len(name) == 1 and name not in "ei{}" else "command", name)], end


def _styled(
    text: str, style: str, start: int, thousands: bool
) -> tuple[list[tuple[str, str]], int]:
    r"""\text{...} and the like: words, or what stands in it as it would without."""
    opening = start + len(text[start:]) - len(text[start:].lstrip())
    closing = closing_brace(text, opening) if text[opening : opening + 1] == "{" else None
    if closing is None:
        raise Unreadable(rf"\{style} without its braces")
    content = text[opening + 1 : closing]
    bare = content.strip().strip("~").strip()
    if not bare:
        return [], closing + 1
    lowered = bare.lower().rstrip(".,")
    if lowered in ("and", "or"):
        return [("command", lowered)], closing + 1
    if style.startswith("math") and len(bare) == 1 and bare.isalpha():
        upright = style == "mathrm" or bare not in "ei"
        return [("letters", bare) if upright else ("command", f"bold {bare}")], closing + 1
    if style.startswith(("math", "operator")) and bare in _WORDS:
        return [("command", NAMES.get(bare, bare))], closing + 1
    if _PLAIN_WORDS.fullmatch(bare) or bare.startswith("("):
        return [("words", bare)], closing + 1
    inner = tokenize(bare, thousands)
    return [("words" if t.kind == "letters" else t.kind, t.text) for t in inner], closing + 1
