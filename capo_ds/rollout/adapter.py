"""The policy's LoRA adapter on its way into a vLLM engine.

After each update only the LoRA factors travel. vLLM's own ways either go over the disk or keep the
old weights without a word (a known LoRA id without `load_inplace`); so the factors are handed to
the engine's LoRA manager in memory, as vLLM's loader would after reading a file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor

if TYPE_CHECKING:
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.model_manager import LoRAModelManager

ADAPTER_ID = 1
ADAPTER_NAME = "policy"


def adapter_tensors(policy: PeftModel) -> dict[str, Tensor]:
    """The LoRA factors under PEFT's names. Copies: vLLM scales what it is given in place."""
    factors = get_peft_model_state_dict(policy, save_embedding_layers=False)
    return {name: factor.detach().clone() for name, factor in factors.items()}


def adapter_settings(policy: PeftModel) -> dict[str, Any]:
    """What `adapter_config.json` would hold."""
    return policy.active_peft_config.to_dict()


def load_adapter(worker: Any, tensors: dict[str, Tensor], settings: dict[str, Any]) -> None:
    """Run on a vLLM worker: put the factors in the place of the ones it has, in its own dtype.

    Raises:
        ValueError: if a tensor has no place in the engine's model, or vLLM lacks a feature that
            the adapter has.
    """
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.peft_helper import PEFTHelper

    manager = worker.model_runner.lora_manager
    adapters = manager._adapter_manager
    peft = PEFTHelper.from_dict(settings)
    peft.validate_legal(manager.lora_config)
    mapper = getattr(adapters.model, "hf_to_vllm_mapper", None)
    lora = LoRAModel.from_lora_tensors(
        ADAPTER_ID,
        tensors,
        peft,
        device=str(adapters.device),
        dtype=manager.lora_config.lora_dtype,
        weights_mapper=mapper and mapper.get_rename_mapper(),
    )
    _account_for(tensors, lora, adapters)
    adapters.remove_adapter(ADAPTER_ID)
    adapters.add_adapter(lora)
    adapters.activate_adapter(ADAPTER_ID)


def _account_for(tensors: dict[str, Tensor], lora: LoRAModel, adapters: LoRAModelManager) -> None:
    """Every tensor must be a factor of a layer of the engine, and every such layer have both."""
    places = {
        part for name in adapters.modules for part in adapters.packed_modules.get(name, [name])
    }
    homeless = sorted(lora.loras.keys() - places)
    taken = [
        factor
        for layer in lora.loras.values()
        for factor in (layer.lora_a, layer.lora_b)
        if factor is not None
    ]
    if homeless or len(taken) != len(tensors) or len(taken) != 2 * len(lora.loras):
        raise ValueError(
            f"vLLM's {type(adapters.model).__name__} has a place for "
            f"{len(taken) - 2 * len(homeless)} of the adapter's {len(tensors)} tensors; without "
            f"one: {', '.join(homeless) or 'a layer that lacks one of its two factors'}. Remove "
            "these layers from model.lora_targets, or set rollout.sampler to hf"
        )
