"""The parts that ship, by kind and name: each is one line here, and one file.

A part is named in the settings by a name of this table, or as `file.py:NAME` where it is the
user's own; `capo_ds/plugins.py` makes either. What the settings say of a kind (its names, its
line of docs/configuration.md) is read off here. Nothing is imported before it is used.
"""

from __future__ import annotations

from typing import NamedTuple

MARK = ".py:"  # in the name of a part that the user brings


class Part(NamedTuple):
    """place: `module:name` of the function or class. what: a few words for the settings' page."""

    place: str
    what: str


OBJECTIVES = "capo_ds.objectives"

BUILT_IN: dict[str, dict[str, Part]] = {
    "objective": {
        "grpo": Part(f"{OBJECTIVES}.grpo:grpo", "each token's ratio, clipped"),
        "gspo": Part(f"{OBJECTIVES}.gspo:gspo", "one ratio a response, clipped"),
        "cispo": Part(f"{OBJECTIVES}.cispo:cispo", "clipped weights, every token has a gradient"),
    },
}


def names(kind: str) -> tuple[str, ...]:
    """The names of the parts of a kind that ship."""
    return tuple(BUILT_IN[kind])


def choices(kind: str) -> str:
    """They, each with its few words, and how a user's own is named."""
    told = [f"{name} ({part.what})" for name, part in BUILT_IN[kind].items()]
    return ", ".join([*told, "or your own as file.py:NAME"])


def known(kind: str, name: str, hint: str = "") -> str:
    """The name, if it can be one of that kind. Raises `ValueError`."""
    if name not in BUILT_IN[kind] and MARK not in name:
        raise ValueError(f"choose among {', '.join(names(kind))}, FILE.py:NAME{hint}")
    return name
