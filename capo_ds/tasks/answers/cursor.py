"""A place among tokens, for the parser to move on."""

from __future__ import annotations

from capo_ds.tasks.answers.tokens import Token
from capo_ds.tasks.answers.values import Unreadable

END = Token("end", "")
DEGREE = ["^", "{", "circ", "}"]


class Cursor:
    """Tokens, and which is next."""

    def __init__(self, tokens: list[Token]):
        self.tokens, self.position = list(tokens), 0
        self.bars = 0  # open |...|
        self.in_function = 0  # open arguments of sin and the like

    @property
    def next(self) -> Token:
        return self.tokens[self.position] if self.position < len(self.tokens) else END

    def after(self, count: int = 1) -> Token:
        position = self.position + count
        return self.tokens[position] if position < len(self.tokens) else END

    def at(self, *texts: str) -> bool:
        """Whether the next token is one of these marks or commands."""
        return self.next.kind in ("mark", "command") and self.next.text in texts

    def accept(self, *texts: str) -> str | None:
        if not self.at(*texts):
            return None
        self.position += 1
        return self.tokens[self.position - 1].text

    def expect(self, text: str) -> None:
        if self.accept(text) is None:
            raise Unreadable(f"{text!r} is missing before {self.next.text or 'the end'!r}")

    def is_degree(self) -> bool:
        return [self.after(offset).text for offset in range(len(DEGREE))] == DEGREE

    def skip_degree(self) -> None:
        self.position += len(DEGREE)
