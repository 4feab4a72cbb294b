"""The parts that ship, by kind and name: each is one line here, and one file.

A part is named in the settings by a name of this table, or as `file.py:NAME` where it is the
user's own; `capo_ds/plugins.py` makes either. Nothing is imported before it is used.
"""

from __future__ import annotations

OWN = ".py:"  # in the name of a part of the user's

BUILT_IN: dict[str, dict[str, str]] = {
    "objective": {
        "grpo": "capo_ds.objectives.grpo:grpo",
        "gspo": "capo_ds.objectives.gspo:gspo",
        "cispo": "capo_ds.objectives.cispo:cispo",
    },
}


def names(kind: str) -> tuple[str, ...]:
    """The names of the parts of a kind that ship."""
    return tuple(BUILT_IN[kind])
