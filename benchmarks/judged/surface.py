r"""Markup around an answer, which changes neither a right one nor a wrong one."""

from __future__ import annotations

import re
from random import Random

UNICODE = {
    r"\pi": "π",
    r"\infty": "∞",
    r"\cup": "\N{UNION}",
    r"\cdot": "·",
    r"\times": "\N{MULTIPLICATION SIGN}",
    r"\pm": "±",
    r"\leq": "≤",
    r"\le": "≤",
    r"\geq": "≥",
    r"\ge": "≥",
    r"\in": "∈",
    r"^\circ": "°",
}


def _characters(text: str) -> str:
    r"""Unicode for commands and minus signs; `\infty` is not `\in`."""
    for command, character in UNICODE.items():
        text = re.sub(re.escape(command) + r"(?![a-zA-Z])", character, text)
    return re.sub(r"(?<![a-zA-Z\d])-(?=\d)", "\N{MINUS SIGN}", text)


WRAPPINGS = {
    "dollars around": lambda text: f"${text}$",
    "math parentheses around": lambda text: rf"\({text}\)",
    "blanks around": lambda text: f"  {text} ",
    "newline around": lambda text: f"\n{text}\n",
    "full stop": lambda text: text if text.endswith(".") else f"{text}.",
    "thin space after it": lambda text: rf"{text}\,",
    "displaystyle": lambda text: rf"\displaystyle {text}",
    "braces around": lambda text: f"{{{text}}}",
    "unicode": _characters,
    "sized parentheses": lambda text: re.sub(
        r"^(x \\in )?([(\[])(?=[^()\[\]]*[)\]]$)(.*)([)\]])$", r"\1\\left\2\3\\right\4", text
    ),
    "negative space": lambda text: text.replace(", ", r",\!\! "),
    "fixed size": lambda text: (
        text
        if re.search(r"\\left|\\big|\\text", text)
        else text.replace("(", r"\bigl(").replace(")", r"\bigr)")
    ),
    "dfrac": lambda text: text.replace(r"\frac{", r"\dfrac{"),
}


def dressed(text: str, rng: Random) -> tuple[str, str] | None:
    """(kind, text) with one wrapping that does something to the text; None where none does."""
    name = rng.choice(sorted(WRAPPINGS))
    result = WRAPPINGS[name](text)
    return None if result == text or "$" in text else (name, result)
