"""From a text to one typed value."""

from __future__ import annotations

import re
from functools import lru_cache

from capo_ds.tasks.answers.grammar import Parser, based
from capo_ds.tasks.answers.latex import cleaned
from capo_ds.tasks.answers.lists import answer
from capo_ds.tasks.answers.nodes import walk
from capo_ds.tasks.answers.plain import MAX_ANSWER_LENGTH, too_costly
from capo_ds.tasks.answers.tokens import STYLES, Token, tokenize
from capo_ds.tasks.answers.units import is_unit_word
from capo_ds.tasks.answers.values import Based, Expression, Text, Unreadable, Value

_STYLED = re.compile(rf"\\(?:{'|'.join(sorted(STYLES))})(?![A-Za-z])\s*\{{([^{{}}\\]*)\}}")
_DIGITS = r"\(?\s*(?P<digits>[0-9A-Za-z]+)\s*\)?"
_BASE = r"\(?\s*(?:base\s*)?(?P<base>[0-9]+|[a-z]+)\s*\)?"
_BASED = [
    re.compile(rf"{_DIGITS}\s*_\s*(?:\{{\s*{_BASE}\s*\}}|(?P<bare>[0-9]+))"),
    re.compile(rf"{_DIGITS}\s*,?\s*\(?\s*(?:in )?base\s*{_BASE}\)?"),
]
_SHORT_WORDS = {
    "no", "on", "it", "is", "in", "up", "yes", "odd", "all", "one", "two", "six", "ten", "east",
}  # fmt: skip
_SPACING = re.compile(r"\\(?:[,;:! ]|quad|qquad)|~")
_WORD = re.compile(r"[0-9]+(?:\.[0-9]+)?|[a-z]+")
_NO_WORDS = re.compile(r"[^A-Za-z0-9 .,:;!?'\"()/\-]")


@lru_cache(maxsize=4096)
def read(text: str, thousands: bool = True) -> Value:
    """The value that an answer stands for.

    thousands: whether 1,234 is one number; else it is two.

    Raises:
        Unreadable: it is none that is known, with the reason.
    """
    bare = cleaned(text) if len(text) <= MAX_ANSWER_LENGTH else text
    if too_costly(bare):
        raise Unreadable("too long, too deep, or too large a number")
    if based := _based(bare):
        return based
    try:
        tokens = tokenize(bare, thousands)
        if _only_words(tokens) and (words := as_words(bare)):
            return Text(words)
        value = answer(Parser(tokens))
        _refuse_words(value)
    except Unreadable:
        words = as_words(bare)
        if words is None or not re.search("[a-z]{2}", words):
            raise
        return Text(words)
    except RecursionError:
        raise Unreadable("too deep") from None
    return value


def _refuse_words(value: Value) -> None:
    if isinstance(value, Expression) and any(n.head == "word" for n in walk(value.node)):
        raise Unreadable("words within an expression")


def as_words(bare: str) -> str | None:
    """A cleaned answer as words in lower case, without punctuation; None if it is more."""
    while (inner := _STYLED.sub(r" \1 ", bare)) != bare:
        bare = inner
    bare = _SPACING.sub(" ", bare)
    if _NO_WORDS.search(bare) or re.search(r"(?<![A-Za-z0-9])-|-(?![A-Za-z0-9])", bare):
        return None
    return " ".join(_WORD.findall(re.sub(r"(?<![0-9])\.|\.(?![0-9])|'", "", bare.lower()))) or None


def _only_words(tokens: list[Token]) -> bool:
    kinds = {token.kind for token in tokens if token.text not in "().,'-"}
    if not kinds or not kinds <= {"words", "letters"}:
        return False
    if any(token.text in ("-", "(") and token.kind == "mark" for token in tokens[1:]):
        return "words" in kinds
    return "words" in kinds or any(_is_word(token.text) for token in tokens)


def _is_word(run: str) -> bool:
    """Whether bare letters are a word rather than a product of variables."""
    lower = run.lower()
    if len(run) == 1:
        return False
    if lower in _SHORT_WORDS or run.isupper():
        return True
    return is_unit_word(run, spaced=True) and list(lower) != sorted(lower)


def _based(bare: str) -> Based | None:
    """4210_5, 4210 base 5."""
    while (inner := _STYLED.sub(r" \1 ", bare)) != bare:
        bare = inner
    for pattern in _BASED:
        match = pattern.fullmatch(_SPACING.sub(" ", bare).strip())
        if not match:
            continue
        name = match.groupdict().get("bare") or match["base"]
        return based(match["digits"], name)
    return None
