r"""The required format of a completion.

A completion has the right format when
1. the text `\boxed` occurs in it exactly once;
2. it opens a box `\boxed{...}` with balanced braces (escaped ones are text) and a content that
   is not blank; no space between the word and its brace;
3. after the box stands nothing that says more: whitespace, punctuation (no question mark), closing
   quotation marks, parentheses and brackets, ends of formulas and environments, spacing commands,
   Markdown's emphasis, closing tags, signs of a proof's end, braces opened before the box.
Any reasoning may stand before the box. So a completion that boxes two answers, goes on talking
after its answer, or is cut off inside the box has the wrong format, whatever its number is. A unit,
an exponent or a percent sign behind the box belongs into it: there they are part of the answer.

Only the completion is read: a box in the question counts for nothing.
"""

from __future__ import annotations

import re

from capo_ds.tasks.answers import BOX, find_boxes

# One piece of closing markup or punctuation. No piece begins as another goes on: linear time.
_NOISE = re.compile(
    r"""[\s.,;:!$*_`"')\]\N{RIGHT SINGLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}]+"""
    r"|[\N{IDEOGRAPHIC FULL STOP}\N{HORIZONTAL ELLIPSIS}\N{END OF PROOF}]+"
    r"|\\[\\,;:! )\]]"
    r"|\\(?:q?quad|hfill|qed|square|blacksquare|Box|par|newline)(?![a-zA-Z])"
    r"|\\end\{[a-zA-Z]+\*?\}"
    r"|</[a-zA-Z]+>|<br ?/?>"
    r"|\}"
)
_BRACE = re.compile(r"\\.|([{}])", re.DOTALL)


def final_answer(completion: str) -> str | None:
    """The content of the box if the completion has the required format, else None."""
    if completion.count(BOX) != 1:
        return None
    boxes = find_boxes(completion)
    if not boxes or not boxes[0].content.strip():
        return None
    box = boxes[0]
    return box.content if _says_no_more(completion, box.start, box.end) else None


def _says_no_more(text: str, start: int, end: int) -> bool:
    """Whether only noise follows a box, whose braces close what was opened before it."""
    closed = 0
    while end < len(text):
        noise = _NOISE.match(text, end)
        if noise is None:
            return False
        closed += noise[0] == "}"
        end = noise.end()
    return closed == 0 or closed <= _open_braces(text[:start])


def _open_braces(text: str) -> int:
    """How many unescaped braces of a text are never closed."""
    depth = 0
    for match in _BRACE.finditer(text):
        depth = max(0, depth + {"{": 1, "}": -1, None: 0}[match[1]])
    return depth
