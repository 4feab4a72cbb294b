"""The parts that ship, by kind and name: each is one line here, and one file.

A part is named in the settings by a name of this table, or as `file.py:NAME` where it is the
user's own; `capo_ds/plugins.py` makes either. What is said of a kind elsewhere (names, the line of
docs/configuration.md, labels in figures) is read off here. Nothing is imported before it is used.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection
from importlib import import_module
from typing import Any, NamedTuple

ALIKE = 0.65  # of 1, how like each other words are that stand for each other
MARK = ".py:"  # in the name of a part that the user brings


class Part(NamedTuple):
    """place: `module:name` of the function or class. what: a few words for the settings' page.
    label: in figures and tables; its name, if there is none. memory: of a sampler, the place of
    the function that says what it needs."""

    place: str
    what: str
    label: str = ""
    memory: str = ""


AGGREGATION, OBJECTIVES = "capo_ds.aggregation", "capo_ds.objectives"
SKETCHES, SAMPLERS, TASKS = "capo_ds.gradients", "capo_ds.rollout", "capo_ds.tasks"

# A name that ends in a colon stands for all that begin with it; its function gives the part.
BUILT_IN: dict[str, dict[str, Part]] = {
    "aggregator": {
        "mean": Part(f"{AGGREGATION}.classics:mean", "the plain average, GRPO's", "GRPO"),
        "capo": Part(f"{AGGREGATION}.capo:capo", "the paper's cone program", "CAPO"),
        "mgda": Part(f"{AGGREGATION}.classics:mgda", "the least vector of the convex hull"),
        "pcgrad": Part(f"{AGGREGATION}.classics:pcgrad", "projections, pair by pair"),
        "cagrad": Part(f"{AGGREGATION}.classics:cagrad", "CAPO with every sample positive"),
        "conflict_free": Part(
            f"{AGGREGATION}.classics:conflict_free", "ConFIG, equal cosines to all samples"
        ),
        "torchjd:": Part(
            f"{AGGREGATION}.torchjd_weightings:torchjd_aggregator",
            "a Gramian weighting of that library, as torchjd:UPGrad",
        ),
    },
    "objective": {
        "grpo": Part(f"{OBJECTIVES}.grpo:grpo", "each token's ratio, clipped"),
        "gspo": Part(f"{OBJECTIVES}.gspo:gspo", "one ratio a response, clipped"),
        "cispo": Part(f"{OBJECTIVES}.cispo:cispo", "clipped weights, every token has a gradient"),
    },
    "reward": {
        "rule": Part(f"{TASKS}.rewards:rule", "what the verdict is worth: 1, -0.5 or -1"),
    },
    "sampler": {
        "hf": Part(
            f"{SAMPLERS}.hf:hf",
            "the training model itself",
            memory=f"{SAMPLERS}.hf:memory",
        ),
        "vllm": Part(
            f"{SAMPLERS}.colocated:vllm",
            "an engine inside every rank, asleep while the trainer works",
            memory=f"{SAMPLERS}.colocated:memory",
        ),
        "process": Part(
            f"{SAMPLERS}.process:process",
            "a process beside every rank, with the model once more",
            memory=f"{SAMPLERS}.process:memory",
        ),
        "server": Part(
            f"{SAMPLERS}.server:server", "a vLLM server elsewhere: launchers/vllm_server.py"
        ),
    },
    "sketch": {
        "rademacher": Part(f"{SKETCHES}.sketch:RademacherSketch", "dense signs, the paper's"),
        "sparse": Part(f"{SKETCHES}.sketch:SparseSketch", "four signs a column"),
        "outer": Part(f"{SKETCHES}.sketch:OuterSketch", "two-sided, without forming gradients"),
    },
    "task": {
        "arithmetic": Part(f"{TASKS}.arithmetic:task", "generated word problems"),
        "gsm8k": Part(f"{TASKS}.sources:GSM8K", "of the hub"),
        "math": Part(f"{TASKS}.sources:MATH", "of the hub"),
        "amc23": Part(f"{TASKS}.sources:AMC23", "of the hub, for testing"),
        "aime24": Part(f"{TASKS}.sources:AIME24", "of the hub, for testing"),
        "custom": Part(f"{TASKS}.sources:CUSTOM", "your own file: give its path and columns"),
    },
    "verdict": {
        "boxed": Part(f"{TASKS}.rewards:boxed", "one box at the end, its content the reference"),
    },
}

FORMER = {"aggregator": {"config": "conflict_free"}}  # names of earlier versions, and today's


def names(kind: str) -> tuple[str, ...]:
    """The names of the parts of a kind that ship, `torchjd:NAME` for a whole library."""
    return tuple(f"{name}NAME" if name.endswith(":") else name for name in BUILT_IN[kind])


def choices(kind: str) -> str:
    """They, each with its few words, and how a user's own is named."""
    told = [
        f"{name} ({part.what})"
        for name, part in zip(names(kind), BUILT_IN[kind].values(), strict=True)
    ]
    return ", ".join([*told, "or your own as file.py:NAME"])


def ships(kind: str, name: str) -> bool:
    """Whether it is the name of a part of the table."""
    return name in BUILT_IN[kind] or _family(name) in BUILT_IN[kind]


def known(kind: str, name: str, hint: str = "") -> str:
    """The name, if it can be one of that kind. Raises `ValueError`."""
    if not ships(kind, name) and MARK not in name:
        close = nearest(name, names(kind))
        meant = f"; did you mean {close}?" if close else ""
        told = f"choose among {', '.join(names(kind))}, FILE.py:NAME{meant}{hint}"
        raise ValueError(_now(kind, name) or told)
    return name


def nearest(word: str, words: Collection[str]) -> str | None:
    """Which of the words one stands for that is written in another way: openai/GSM8K is gsm8k,
    bf16 bfloat16, cosine_with_min_lr cosine."""
    told = word.strip().casefold()
    last = told.replace(":", "/").split("/")[-1]
    for other in words:
        if other.casefold() in (told, last) or told.startswith(other.casefold() + "_"):
            return other
    found = difflib.get_close_matches(last, words, n=1, cutoff=ALIKE)
    return found[0] if found else None


def built_in(kind: str, name: str) -> Callable[..., Any]:
    """The part of that name that ships.

    Raises:
        ValueError: there is none; the text lists them, or tells a former one's name of today.
        ImportError: it needs a package that is not there.
    """
    if name in BUILT_IN[kind]:
        return at(BUILT_IN[kind][name].place)
    if _family(name) in BUILT_IN[kind]:
        return at(BUILT_IN[kind][_family(name)].place)(name)
    now = _now(kind, name) or f"choose from {', '.join(names(kind))}"
    raise ValueError(f"unknown {kind} {name!r}; {now}")


def labels(kind: str) -> dict[str, str]:
    """What the parts of a kind are called in figures and tables."""
    return {name: part.label or name for name, part in BUILT_IN[kind].items()}


def short(name: str) -> str:
    """What a part is called where it is one of several: of the user's, without the file."""
    return name.rpartition(":")[2] if MARK in name else name


def shortest(names: Collection[str]) -> dict[str, str]:
    """What each of several parts is called beside the others: of a path as little of its end as no
    other's has."""
    ends = {name: _ends(name) for name in names}
    told = {}
    for name in names:
        others = {end for other in names if other != name for end in ends[other]}
        told[name] = next((end for end in ends[name] if end not in others), name)
    return told


def _ends(name: str) -> list[str]:
    """Of a path: `rew.py:f`, `a/rew.py:f`, and so on."""
    parts = name.split("/")
    return ["/".join(parts[-count:]) for count in range(1, len(parts) + 1)]


def _now(kind: str, name: str) -> str:
    today = FORMER.get(kind, {}).get(name)
    return f"it is called {today} now" if today else ""


def _family(name: str) -> str:
    return name.partition(":")[0] + ":"


def at(place: str) -> Any:
    """What `module:name` is."""
    module, _, attribute = place.partition(":")
    return getattr(import_module(module), attribute)
