"""The policy's LoRA adapter on its way into a vLLM engine.

After each update only the LoRA factors travel. vLLM's own ways either go over the disk or keep the
old weights without a word (a known LoRA id without `load_inplace`); so the factors are handed to
the engine's LoRA manager in memory, as vLLM's loader would after reading a file
(`vllm_internals.load_adapter`).
"""

from __future__ import annotations

from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor

ADAPTER_NAME = "policy"


def adapter_tensors(policy: PeftModel) -> dict[str, Tensor]:
    """The LoRA factors under PEFT's names. Copies: vLLM scales what it is given in place."""
    factors = get_peft_model_state_dict(policy, save_embedding_layers=False)
    return {name: factor.detach().clone() for name, factor in factors.items()}


def adapter_settings(policy: PeftModel) -> dict[str, Any]:
    """What `adapter_config.json` would hold."""
    return policy.active_peft_config.to_dict()
