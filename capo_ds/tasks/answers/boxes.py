r"""Finding the final answer: the content of `\boxed{...}`."""

from dataclasses import dataclass

from capo_ds.tasks.answers.latex import closing_brace

BOX = r"\boxed"


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
        end = None if _is_escaped(text, start) else closing_brace(text, start + len(BOX))
        if end is None:
            position = start + len(BOX)
        else:
            boxes.append(Box(text[start + len(BOX) + 1 : end], start, end + 1))
            position = end + 1
    return boxes


def _is_escaped(text: str, position: int) -> bool:
    """Whether an odd number of backslashes stands directly before `position`."""
    before = text[:position]
    return (len(before) - len(before.rstrip("\\"))) % 2 == 1
