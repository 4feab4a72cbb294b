"""Which LoRA factors make up a block of the gradient, that has a program of its own."""

from __future__ import annotations

import re

ENDS = {  # of the part of a factor's name that names its block
    "whole": r"^",
    "layer": r"^.*?\.\d+(?=\.)",  # the path up to its first number
    "module": r"^.*(?=\.lora_)",  # up to the factor
}


def blocks_of(names: list[str], kind: str) -> list[int]:
    """The number of the block that each LoRA factor belongs to, counted in order of appearance.

    names: of the factors' parameters, `...layers.3.self_attn.q_proj.lora_A.default.weight`.
    kind: whole, layer or module.
    """
    found = [re.match(ENDS[kind], name) for name in names]
    keys = [match[0] if match else name for match, name in zip(found, names, strict=True)]
    order = list(dict.fromkeys(keys))
    return [order.index(key) for key in keys]
