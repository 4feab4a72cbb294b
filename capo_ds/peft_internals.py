"""What capo_ds needs of PEFT beyond its documented interface. Nothing else looks inside it.

`RELIED_ON` names every such attribute by its class; tests/unit/test_contracts.py looks for each in
the installed version, and `check` says which one is gone where it is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from peft import PeftModel
from peft.tuners.lora import LoraLayer

from capo_ds.contracts import check

RELIED_ON = {
    "LoraLayer": ["_active_adapter", "cast_input_dtype_enabled"],
    "PeftModel": ["create_or_update_model_card"],
}


def _layers(policy: PeftModel) -> list[LoraLayer]:
    layers: list[LoraLayer] = [
        module for module in policy.modules() if isinstance(module, LoraLayer)
    ]
    for layer in layers[:1]:
        check("peft", layer, RELIED_ON["LoraLayer"])
    return layers


@contextmanager
def active_adapter(policy: PeftModel, name: str, then: str) -> Iterator[None]:
    """Inside, passes go through this adapter, afterwards through `then`.

    PEFT's `set_adapter` would also thaw and freeze factors.
    """
    layers = _layers(policy)
    try:
        for layer in layers:
            layer._active_adapter = [name]
        yield
    finally:
        for layer in layers:
            layer._active_adapter = [then]


def keep_input_dtype(policy: PeftModel) -> None:
    """From now on layers take their inputs as they are; PEFT would widen each to float32.

    (Its `disable_input_dtype_casting` does so for the length of a block alone.)
    """
    for layer in _layers(policy):
        layer.cast_input_dtype_enabled = False


@contextmanager
def without_card(policy: PeftModel) -> Iterator[None]:
    """Inside, saving writes no model card: PEFT's is an empty form, and takes half of the time."""
    check("peft", policy, RELIED_ON["PeftModel"])
    policy.create_or_update_model_card = lambda output_dir: None
    try:
        yield
    finally:
        del policy.create_or_update_model_card
