"""What comes of comparing an answer with its reference, and why."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Comparison(StrEnum):
    """What became of comparing an answer to its reference; all but EQUAL count as wrong."""

    EQUAL = "equal"
    DIFFERENT = "different"
    UNPARSED = "unparsed"  # refused unread, or it could not be read or compared
    TIMED_OUT = "timed out"
    UNJUDGED = "unjudged"  # the budget of the step was spent


class Outcome(NamedTuple):
    """A comparison with its reason.

    Attributes:
        reason: why, in words for the user.
        given, reference: the types that the two were read as (`number`, `tuple`, ...); "" where
            an answer was not read.
    """

    comparison: Comparison
    reason: str = ""
    given: str = ""
    reference: str = ""
