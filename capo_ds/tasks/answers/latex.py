"""One spelling for what LaTeX, Unicode and plain text write in several ways."""

from __future__ import annotations

import re

_UNICODE = {
    "\u2212": "-", "\u2013": "-", "\u00d7": r"\times ", "\u00b7": r"\cdot ", "\u22c5": r"\cdot ",
    "\u00f7": r"\div ", "\u2044": "/", "\u03c0": r"\pi ", "\u221e": r"\infty ", "\u222a": r"\cup ",
    "\u2229": r"\cap ", "\u2208": r"\in ", "\u2264": r"\le ", "\u2265": r"\ge ",
    "\u2a7d": r"\le ", "\u2a7e": r"\ge ", "\u2260": r"\ne ", "\u00b1": r"\pm ", "\u2213": r"\mp ",
    "\u00b0": r"^{\circ}", "\u00ba": r"^{\circ}", "\u03b8": r"\theta ", "\u03b1": r"\alpha ",
    "\u03b2": r"\beta ", "\u03b3": r"\gamma ", "\u03bb": r"\lambda ", "\u03bc": r"\mu ",
    "\u03c6": r"\phi ", "\u03c9": r"\omega ", "\u2032": "'", "\u2019": "'", "\u2018": "'",
    "\u27e8": r"\langle ", "\u27e9": r"\rangle ", "\u211d": r"\mathbb{R}", "\u2124": r"\mathbb{Z}",
    "\u2205": r"\emptyset ", "\u2220": r"\angle ", "\u221b": r"\sqrt[3]", "\u221a": r"\sqrt",
    "\u20ac": r"\euro ", "\u00a3": r"\pounds ", "\u00a5": r"\yen ", "\u00a2": r"\cents ",
    "\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u2003": " ", "\u2002": " ",
    "\u2216": r"\setminus ",
    "\u2223": "|", "\u2236": ":", "\u2061": "", "\u2062": "",
    "\u00bd": r"\frac{1}{2}", "\u2153": r"\frac{1}{3}", "\u2154": r"\frac{2}{3}",
    "\u00bc": r"\frac{1}{4}", "\u00be": r"\frac{3}{4}", "\u2155": r"\frac{1}{5}",
    "\u2156": r"\frac{2}{5}", "\u2157": r"\frac{3}{5}", "\u2158": r"\frac{4}{5}",
    "\u2159": r"\frac{1}{6}", "\u215a": r"\frac{5}{6}", "\u215b": r"\frac{1}{8}",
    "\u215c": r"\frac{3}{8}", "\u215d": r"\frac{5}{8}", "\u215e": r"\frac{7}{8}",
}  # fmt: skip
_TABLE = str.maketrans(_UNICODE)
_RAISED = "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b\u207a\u207f\u02e3"
_LOWERED = "\u2080\u2081\u2082\u2083\u2084\u2085\u2086\u2087\u2088\u2089"
_PLAIN = str.maketrans(_RAISED + _LOWERED, "0123456789-+nx" + "0123456789")

_REWRITTEN = [
    (re.compile(rf"[{_RAISED}]+"), lambda match: f"^{{{match[0].translate(_PLAIN)}}}"),
    (re.compile(rf"[{_LOWERED}]+"), lambda match: f"_{{{match[0].translate(_PLAIN)}}}"),
    # Sizes and styles say nothing.
    (re.compile(r"\\(?:left|right|middle)\s*\."), ""),
    (
        re.compile(
            r"\\(?:left|right|middle|displaystyle|textstyle|scriptstyle|limits|nolimits|mathstrut|"
            r"[bB]igg?[lrm]?|mathopen|mathclose|mathrel|ensuremath|bm|boldsymbol)(?![A-Za-z])"
        ),
        "",
    ),
    (re.compile(r"\{\s*([:=<>+-])\s*\}"), r"\1"),
    (re.compile(r"\{([^{}]*)\\over(?![A-Za-z])([^{}]*)\}"), r"\\frac{\1}{\2}"),
    (re.compile(r"\{([^{}]*)\\choose(?![A-Za-z])([^{}]*)\}"), r"\\binom{\1}{\2}"),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\[dt]binom(?![A-Za-z])"), r"\\binom"),
    (re.compile(r"\\(?:degrees?)(?![A-Za-z])"), r"^{\\circ}"),
    (re.compile(r"\^\s*\{\s*\^\s*\{\s*\\circ\s*\}\s*\}"), r"^{\\circ}"),
    (re.compile(r"\^\s*\\circ(?![A-Za-z])"), r"^{\\circ}"),
    (re.compile(r"(?<![A-Za-z\\])sqrt(?=\s*[0-9({])"), r"\\sqrt"),
    (re.compile(r"\\sqrt\s*([0-9]{2,}(?:\.[0-9]+)?)"), r"\\sqrt{\1}"),
    (re.compile(r"\\h(?:space|skip)\*?\s*\{[^{}]*\}"), " "),
    (re.compile(r"\*\*"), "^"),
    # Abbreviations: o'clock, sq. ft., m.p.h., a.m.
    (re.compile(r"(?<![A-Za-z])o'\s?clock(?![A-Za-z])", re.IGNORECASE), "oclock"),
    (
        re.compile(
            r"(?<![A-Za-z\\])(sq|cu|ft|in|yds?|mi|cm|mm|km|kgs?|mg|lbs?|oz|gal|ml|hrs?|mins?|secs?|"
            r"yrs?|wks?|mo|mph|kph|deg)\.(?=\s*(?:[A-Za-z/^}\\]|$))(?!\.)",
            re.IGNORECASE,
        ),
        r"\1",
    ),
    (re.compile(r"(?<![A-Za-z])([mk])\.\s?p\.\s?h(?:\.|(?![A-Za-z]))", re.IGNORECASE), r"\1ph"),
    (re.compile(r"(?<![A-Za-z])([aApP])\.\s?[mM](?:\.(?![A-Za-z])|(?![A-Za-z.]))"), r"\1m"),
]
_PAIRS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)")


def cleaned(text: str) -> str:
    """The same answer without its wrapping ($, a box, braces, a full stop), in one spelling."""
    # A root sign of plain text holds the whole number after it, LaTeX's one digit.
    text = re.sub(r"\\sqrt\s*([0-9])(?=[0-9])", r"\\sqrt{\1}", text)
    text = text.translate(_TABLE)
    for pattern, replacement in _REWRITTEN:
        text = pattern.sub(replacement, text)
    while (bare := _unwrapped(text)) != text:
        text = bare
    return text


def _unwrapped(text: str) -> str:
    text = text.strip()
    if text.endswith(".") and not text.endswith(("..", r"\.")):
        text = text[:-1].rstrip()
    for opening, closing in _PAIRS:
        inside = text[len(opening) : len(text) - len(closing)]
        wrapped = text.startswith(opening) and text.endswith(closing) and len(text) > len(opening)
        if wrapped and inside and opening not in inside and not inside.endswith("\\"):
            return inside
    bare = _BOX.sub("", text, count=1) if _BOX.match(text) else text
    if bare.startswith("{") and closing_brace(bare, 0) == len(bare) - 1:
        return bare[1:-1]
    return text


def closing_brace(text: str, opening: int) -> int | None:
    """Offset of the brace that closes the one at `opening`, or None; escaped braces are text."""
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
