"""Only causal language models are trained: decoders in which no token sees those behind it."""

from __future__ import annotations

import re
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
)

from capo_ds.architecture import taken
from capo_ds.config import ConfigError

NEEDED = (
    "what is trained is a causal language model, a decoder alone that predicts each token from "
)
NEEDED += "those before it (LlamaForCausalLM, Qwen3ForCausalLM, ...); choose one"
# Ends of the names of classes that share a causal model's config, and are none.
OTHER_HEADS = r"(For(MaskedLM|\w*Classification|QuestionAnswering|MultipleChoice)|RewardModel)$"
DECODER_NAMES = ("is_decoder", "causal")  # of those families that come as encoders, too
TOKENS, MIDDLE = 8, 3  # of the check; whose logits are looked at
SHARE = 0.1  # of what the tokens before weigh; those behind weigh nothing, or as much


def check_kind(architecture: PretrainedConfig, path: str) -> None:
    """By its config, before tokenizer and weights are read: is it a language model's decoder?

    Raises:
        ConfigError: for encoder-decoders, other modalities alone, and other heads.
    """
    names = architecture.architectures or []
    start = f"model.path: {path!r} is a {' or '.join(names) or type(architecture).__name__} "
    start += f"({architecture.model_type})"
    if getattr(architecture, "is_encoder_decoder", False):
        raise ConfigError(f"{start}, an encoder with a decoder; {NEEDED}")
    own = getattr(architecture, "auto_map", None) or {}
    known = type(architecture) in MODEL_FOR_CAUSAL_LM_MAPPING
    if not known and AutoModelForCausalLM.__name__ not in own:
        raise ConfigError(f"{start}; {NEEDED}")
    is_decoder = any(getattr(architecture, name, False) for name in DECODER_NAMES)
    if known and type(architecture) in MODEL_FOR_MASKED_LM_MAPPING and not is_decoder:
        raise ConfigError(f"{start}, an encoder; {NEEDED}")
    if names and all(re.search(OTHER_HEADS, name) for name in names):
        raise ConfigError(f"{start}; {NEEDED}")


def check_causal(policy: PeftModel) -> None:
    """By a pass: the logits of a token must not depend on the tokens behind it.

    Found from the gradient of those logits by the embeddings of all tokens, which does not vanish
    for small weights or in coarse arithmetic. What a model of its own code does, no config tells.

    Raises:
        ConfigError: naming the model's class.
    """
    model = policy.get_base_model()
    seen: list[Tensor] = []

    def watch(_: Any, __: Any, output: Tensor) -> Tensor:
        seen.append(output.detach().requires_grad_())
        return seen[-1].clone()  # the model may scale it in place

    embeddings = policy.get_input_embeddings()
    hook = embeddings.register_forward_hook(watch)
    try:
        with torch.enable_grad():
            ids = torch.arange(TOKENS, device=embeddings.weight.device)[None]
            logits = policy(input_ids=ids, **taken(model, use_cache=False)).logits
            _check_numbers(model, logits)
            # Any direction will do; a sum of all logits could be blind to what a norm takes out.
            weights = torch.linspace(-1, 1, logits.shape[-1], device=logits.device).cos()
            value = (logits[0, MIDDLE].float() * weights).sum()
            parts = torch.autograd.grad(value, seen, allow_unused=True)
    finally:
        hook.remove()
    sizes = torch.zeros(TOKENS)
    for part in parts:
        if part is not None and part.shape[:-1].numel() == TOKENS:
            sizes += part.reshape(TOKENS, -1).float().norm(dim=1).cpu()
    if sizes[MIDDLE + 1 :].max() > SHARE * sizes[:MIDDLE].max():
        kind = getattr(model.config, "model_type", "no model_type")
        raise ConfigError(
            f"model.path: in this {type(model).__name__} ({kind}) tokens see "
            f"those behind them; {NEEDED}"
        )


def _check_numbers(model: Any, logits: Tensor) -> None:
    """Raises `ConfigError` where the logits are not numbers, naming the weights that are none."""
    if not logits.isnan().any():
        return
    none = [name for name, weight in model.named_parameters() if not weight.isfinite().all()]
    told = f", in {logits.dtype}: get the weights anew, or choose another model.dtype"
    if none:  # at ZeRO 3 each rank has a part of them, if any
        told = f": {none[0]} holds NaN or infinity; get the weights anew"
    key = "model.adapter" if none and ".lora_" in none[0] else "model.path"
    raise ConfigError(f"{key}: the logits of this {model.config.model_type} model are NaN{told}")
