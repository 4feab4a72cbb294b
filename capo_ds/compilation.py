"""The layers of a decoder compiled by torch.compile, in the passes that are gone back through.

Layers of one kind share their code, so compiling takes as long for ninety of them as for two. What
makes no gradients runs as ever: sampling, whose caches would be compiled once each, and fixed
log-probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import nn

from capo_ds.config import ConfigError, ModelConfig

# Of a layer's code: its input and its factors with gradients or without, one row or more, kinds of
# attention. Beyond torch's limit of 8 it would run uncompiled in silence.
VARIANTS = 64

_off = False


def compile_layers(layers: list[nn.Module]) -> None:
    """Each layer's forward pass is compiled when it first runs with gradients on."""
    torch._dynamo.config.recompile_limit = VARIANTS
    torch._dynamo.config.specialize_float = True  # scales and the like are the model's constants
    for layer in layers:
        layer.forward = _compiled_with_gradients(layer.forward)


@contextmanager
def uncompiled() -> Iterator[None]:
    """Inside, layers run as they were written."""
    global _off
    before, _off = _off, True
    try:
        yield
    finally:
        _off = before


def check_compilable(config: ModelConfig, zero_stage: int) -> None:
    """Raises `ConfigError` where `model.compile` cannot be had with the other settings."""
    if config.compile and zero_stage == 3:
        raise ConfigError(
            "model.compile: ZeRO 3 gathers weights by hooks inside the layers, which a compiled "
            "layer does not run; set it to false, or deepspeed to a file of a lower stage"
        )


def _compiled_with_gradients(forward: Callable[..., Any]) -> Callable[..., Any]:
    # dynamic: a pass is as wide as its longest row, and has as many rows as fit.
    compiled = torch.compile(forward, dynamic=True)

    @wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        chosen = compiled if torch.is_grad_enabled() and not _off else forward
        return chosen(*args, **kwargs)

    return run
