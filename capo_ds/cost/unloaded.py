"""Models whose weights are not there: by config.json, as shapes alone or with random weights.

On torch's meta device parameters have the sizes and the bytes of those that a run loads, which is
all that a forecast counts, memory included; with random weights passes take the time of a run's.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.quantizers.base import get_keys_to_not_convert

from capo_ds.adapters import add_reference, continued_adapter, fresh_adapter
from capo_ds.architecture import text_config
from capo_ds.config import ModelConfig
from capo_ds.log_probs import WHOLE_LOGITS
from capo_ds.quantization import FOUR_BITS, prepare_quantised
from capo_ds.weights import read_architecture

# What configs call that which changes logits after the output layer; a run finds it by a pass.
LATER = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")


def unloaded_policy(config: ModelConfig) -> PeftModel:
    """The policy of these settings, without weights; reads config.json, from the folder or the
    hub's cache, and an adapter's own.

    Raises:
        ConfigError: the config cannot be read or trained on, or `lora_targets` names no layer.
    """
    architecture, four_bits = _architecture(config)
    # Of the attention and the dtype that a pass over shapes (for `all-linear`) works with.
    base = _made(config, architecture, torch.device("meta"), torch.bfloat16, "eager")
    if four_bits is not None:
        _keep_in_four_bits(base, four_bits)
    adapter = config.adapter
    policy = _continued(base, adapter, config) if adapter else fresh_adapter(base, config, seed=0)
    for parameter in policy.parameters():
        if parameter.is_floating_point():
            dtype = "float32" if parameter.requires_grad else config.dtype
            parameter.data = parameter.data.to(getattr(torch, dtype))
    text = text_config(architecture)
    setattr(policy, WHOLE_LOGITS, any(getattr(text, name, None) not in (None, 1) for name in LATER))
    return policy


def random_base(config: ModelConfig, device: torch.device) -> PreTrainedModel | None:
    """The causal LM without adapter, its weights drawn at random; None for one in 4 bits, which
    must be loaded. Raises `ConfigError`."""
    architecture, four_bits = _architecture(config)
    if four_bits is not None:
        return None
    dtype = getattr(torch, config.dtype)
    return _made(config, architecture, device, dtype, config.attn_implementation).eval()


def _architecture(config: ModelConfig) -> tuple[PretrainedConfig, dict[str, Any] | None]:
    """As if the weights were not quantised; and how those in 4 bits are."""
    architecture = read_architecture(config)
    stored = prepare_quantised(architecture, config)
    settings = vars(architecture).pop("quantization_config", None)
    return architecture, (settings or {}) if config.load_in_4bit or stored == FOUR_BITS else None


def _made(
    config: ModelConfig,
    architecture: PretrainedConfig,
    device: torch.device,
    dtype: torch.dtype,
    attention: str | None,
) -> PreTrainedModel:
    chosen = {"attn_implementation": attention} if attention else {}
    code = {"trust_remote_code": config.trust_remote_code}
    with device:
        return AutoModelForCausalLM.from_config(architecture, dtype=dtype, **code, **chosen)


def _continued(base: PreTrainedModel, folder: str, config: ModelConfig) -> PeftModel:
    policy = continued_adapter(base, folder, shapes_only=True)
    if config.reference == "adapter":
        add_reference(policy, folder, shapes_only=True)
    return policy


def _keep_in_four_bits(base: PreTrainedModel, settings: dict[str, Any]) -> None:
    """Linear layers as bitsandbytes keeps them, two entries a byte; but for the output layer, or
    what the checkpoint's own settings leave out."""
    kept = settings.get("llm_int8_skip_modules") or get_keys_to_not_convert(base)
    for name, module in base.named_modules():
        if isinstance(module, nn.Linear) and not any(part in name for part in kept):
            size = -(-module.weight.numel() // 2)
            packed = torch.empty(size, 1, dtype=torch.uint8, device="meta")
            module.weight = nn.Parameter(packed, requires_grad=False)
            setattr(module.weight, "quant_state", FOUR_BITS)  # noqa: B010 # as `entries` knows it
