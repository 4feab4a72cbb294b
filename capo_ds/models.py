"""The policy: a causal LM with a LoRA adapter; its reference is the same LM, adapter off (or as
it was when the run started)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

from capo_ds.adapters import (
    ALL_LINEAR,
    add_reference,
    continued_adapter,
    fresh_adapter,
    reference_policy,
)
from capo_ds.architecture import checkpoint_layers, first_pass, layers_for, position_ids
from capo_ds.causality import check_causal
from capo_ds.compilation import compile_layers, uncompiled
from capo_ds.config import ConfigError, ModelConfig
from capo_ds.distributed import comm
from capo_ds.distributed.alike import make_alike
from capo_ds.distributed.zero import share_out
from capo_ds.log_probs import (
    LOGIT_CHUNK_TOKENS,
    find_output_layer,
    linear_log_probs,
    token_log_probs,
)
from capo_ds.peft_internals import keep_input_dtype
from capo_ds.quantization import is_four_bit
from capo_ds.shared_prompts import find_whether_prompts_are_read_once
from capo_ds.weights import load_base_model, load_tokenizer

__all__ = [
    "LOGIT_CHUNK_TOKENS",
    "first_passes",
    "linear_log_probs",
    "load_base_model",
    "load_policy",
    "load_shared_policy",
    "load_tokenizer",
    "position_ids",
    "reference_policy",
    "token_log_probs",
]
CPU = torch.device("cpu")


def load_policy(
    config: ModelConfig,
    seed: int,
    device: torch.device = CPU,
    base: PreTrainedModel | None = None,
) -> PeftModel:
    """The LM with LoRA factors in float32, on the device: fresh ones, or those of `adapter`.

    It is in evaluation mode and must stay there: in training mode models draw dropout, noise for
    their routers and more, where ratios and per-sample gradients need the policy itself.

    base: in place of the weights at `path`.
    Raises:
        ConfigError: if the model cannot be loaded, or has no layer named in `lora_targets`.
    """
    policy = _with_adapter(base or load_base_model(config), config, seed, device)
    first_passes(policy, device)
    with first_pass(policy):
        find_whether_prompts_are_read_once(policy, device)
    return policy


def load_shared_policy(config: ModelConfig, seed: int, settings: dict[str, Any]) -> PeftModel:
    """As `load_policy`, but of the base weights each rank keeps its part of ZeRO 3 alone, and
    `first_passes` are still to be made, once there is an engine (all ranks). Base weights in 4
    bits are whole until then.

    settings: DeepSpeed's JSON.
    Raises:
        ConfigError, PeerError: on all ranks.
    """
    device = comm.device()
    with comm.together("loading the model"):
        base = load_base_model(config, empty=not comm.is_main())
    shared = not is_four_bit(base)
    if shared:
        make_alike(base)
        with comm.collective("sharing out the weights"):
            share_out(base, settings, device)
    makes_pass = not config.adapter and config.lora_targets == ALL_LINEAR
    with comm.phase("loading the model", is_collective=shared and makes_pass):
        return _with_adapter(base, config, seed, device)


def _with_adapter(
    base: PreTrainedModel, config: ModelConfig, seed: int, device: torch.device
) -> PeftModel:
    if config.adapter:
        policy = continued_adapter(base, config.adapter)
        if config.reference == "adapter":
            add_reference(policy, config.adapter)
    else:
        policy = fresh_adapter(base, config, seed)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    policy.to(device)
    if config.dtype == "bfloat16":
        _compute_in(policy, torch.bfloat16, device)
    if config.compile:
        compile_layers(layers_for(policy.get_base_model(), "model.compile"))
    if config.gradient_checkpointing:  # around what is compiled
        checkpoint_layers(policy.get_base_model())
    if isinstance(policy.get_output_embeddings(), LoraLayer):
        raise ConfigError("model.lora_targets: the output layer cannot have LoRA factors")
    return policy.eval()


def first_passes(
    policy: PeftModel, device: torch.device, end: Callable[[], None] | None = None
) -> None:
    """Find out, once, what cannot be told from the model's config.

    end: what is to be called after a backward pass.
    Raises:
        ConfigError: if the model is not causal, or a pass fails.
    """
    with first_pass(policy), uncompiled():  # of one row: no pass of training is like it
        check_causal(policy)
        if end:
            end()
        find_output_layer(policy, device)


def _compute_in(policy: PeftModel, dtype: torch.dtype, device: torch.device) -> None:
    """Mixed precision: the float32 LoRA factors are rounded for each forward pass, which then runs
    in the base weights' dtype throughout; PEFT would widen every layer's input to float32."""
    keep_input_dtype(policy)
    policy.forward = torch.autocast(device.type, dtype)(policy.forward)
