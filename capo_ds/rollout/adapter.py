"""The policy's LoRA adapter on its way into a vLLM engine.

After each update only the LoRA factors travel. vLLM's own ways either go over the disk or keep the
old weights without a word (a known LoRA id without `load_inplace`); so the factors are handed to
the engine's LoRA manager in memory, as vLLM's loader would after reading a file
(`vllm_internals.load_adapter`).
"""

from __future__ import annotations

import json
from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save
from torch import Tensor

from capo_ds.rollout.server_door import CONFIGURATION

ADAPTER_NAME = "policy"


def adapter_tensors(policy: PeftModel) -> dict[str, Tensor]:
    """The LoRA factors under PEFT's names. Copies: vLLM scales what it is given in place."""
    factors = get_peft_model_state_dict(policy, save_embedding_layers=False)
    return {name: factor.detach().clone() for name, factor in factors.items()}


def adapter_settings(policy: PeftModel) -> dict[str, Any]:
    """What `adapter_config.json` would hold."""
    return policy.active_peft_config.to_dict()


def packed_adapter(policy: PeftModel) -> bytes:
    """Factors and settings as one safetensors file, as `server_door` takes it."""
    tensors = {name: factor.contiguous() for name, factor in adapter_tensors(policy).items()}
    settings = json.dumps(adapter_settings(policy), default=sorted)  # sets of names
    return save(tensors, {CONFIGURATION: settings})
