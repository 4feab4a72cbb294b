"""Base weights of fewer bits: which of them a run can be made on, and what it tells of them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel

from capo_ds.config import ConfigError, ModelConfig
from capo_ds.distributed.zero import parameter_count

# By quant_method of config.json. Read into the run's own dtype, on every device alike: where a GPU
# could multiply with them as they are, their layers have no backward pass.
READ_INTO_DTYPE = ("fp8", "mxfp8", "mxfp4", "compressed-tensors")
FOUR_BITS = "bitsandbytes"
RUNS = "what runs: float32, bfloat16 and float16 checkpoints; those quantised with "
RUNS += (
    f"{', '.join(READ_INTO_DTYPE)}, which are read into model.dtype; and 4 bits by bitsandbytes "
)
RUNS += "(model.load_in_4bit, or stored so)"
# Ends of names of tensors that quantised weights come with, and unquantised ones do not.
TRACES = ("_scale", "_scale_inv", "_scales", ".scales", ".qweight", ".qzeros", ".g_idx", ".SCB")
TRACES += (".absmax", "_packed", "_blocks", "_zero_point", ".quant_map")
STORED_AS = "capo_ds_stored_as"  # attribute of a model that was read out of quantised weights
NAMED = 3


def prepare_quantised(architecture: PretrainedConfig, config: ModelConfig) -> str | None:
    """How the checkpoint's weights are quantised, if so; its config is changed so that they are
    read as a run can train on them.

    Raises:
        ConfigError: for what no run can be made on.
    """
    stored = stored_method(architecture)
    if stored is None:
        return None
    settings = architecture.quantization_config
    start = f"model.path: the weights of {config.path!r} are quantised ({stored}, "
    start += "quantization_config in config.json)"
    if config.load_in_4bit:
        raise ConfigError(
            f"model.load_in_4bit: the weights of {config.path!r} are quantised already "
            f"({stored}); leave it false"
        )
    if stored == FOUR_BITS and settings.get("load_in_8bit"):
        raise ConfigError(
            f"{start}: LLM.int8 rounds a layer's inputs by what else is in the batch, so that a "
            f"sample's probabilities depend on its neighbours; choose the unquantised model; {RUNS}"
        )
    if stored != FOUR_BITS and stored not in READ_INTO_DTYPE:
        raise ConfigError(
            f"{start}, which cannot be trained on; choose the unquantised model; {RUNS}"
        )
    if stored in READ_INTO_DTYPE:
        architecture.quantization_config = settings | {"dequantize": True}
    if stored == FOUR_BITS:
        _require_bitsandbytes("model.path")
    return stored


def four_bits(config: ModelConfig) -> BitsAndBytesConfig:
    """QLoRA's: NF4, the scales quantised once more. Raises `ConfigError` without bitsandbytes."""
    _require_bitsandbytes("model.load_in_4bit")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, config.dtype),
    )


def check_read(config: ModelConfig, unexpected: list[str]) -> None:
    """Refuse weights that were quantised in a way that config.json does not tell: they would be
    read without their scales. unexpected: tensors of the checkpoint that the model has not.

    Raises:
        ConfigError: naming some of them.
    """
    if found := sorted(name for name in unexpected if name.endswith(TRACES)):
        raise ConfigError(
            f"model.path: the weights at {config.path!r} are quantised in a way that their "
            f"config.json does not tell ({len(found)} tensors like {', '.join(found[:NAMED])}), so "
            f"that they cannot be read; choose the unquantised model; {RUNS}"
        )


def keep_one_arithmetic(model: nn.Module, config: ModelConfig) -> None:
    """Make 4-bit layers multiply in `model.dtype`, in sampling as in training.

    bitsandbytes packs weights anew for inference, on CPUs with AVX512-BF16, at the first pass
    without gradients: packed ones are multiplied in other rounding and have no backward pass.
    """
    module: Any  # of bitsandbytes
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
            module.compute_dtype = getattr(torch, config.dtype)


def is_four_bit(model: nn.Module) -> bool:
    """Whether any of its weights are kept in 4 bits."""
    return any(map(_is_four_bit, model.parameters()))


def dequantised(model: PreTrainedModel, config: ModelConfig) -> PreTrainedModel:
    """A 4-bit model with the weights that it stands for, in `model.dtype`."""
    return model.dequantize(getattr(torch, config.dtype))


def stored_method(architecture: Any) -> str | None:
    """How a checkpoint's weights are quantised, or None."""
    settings = getattr(architecture, "quantization_config", None)
    if settings is None:
        return None
    settings = settings if isinstance(settings, dict) else settings.to_dict()
    method = settings.get("quant_method", "an unknown way")
    return str(getattr(method, "value", method))


def entries(parameter: nn.Parameter) -> int:
    """Of a whole parameter, also where ZeRO 3 has taken it apart, or a byte holds two entries."""
    stored = parameter_count(parameter)
    return 2 * stored * parameter.element_size() if _is_four_bit(parameter) else stored


def base_precision(model: nn.Module) -> str:
    """In what precision the frozen weights are kept, for people; and what they were, if changed."""
    counts: Counter[str] = Counter()
    parameter: Any  # of bitsandbytes, it knows its quant_state
    for parameter in model.parameters():
        four_bit = _is_four_bit(parameter)
        if not parameter.requires_grad and (four_bit or parameter.is_floating_point()):
            name = str(parameter.dtype).removeprefix("torch.")
            if four_bit:
                name = parameter.quant_state.quant_type
            counts[name] += entries(parameter)
    total = sum(counts.values())
    shares = [
        name if count == total else f"{name} {count / total:.0%}"
        for name, count in counts.most_common()
    ]
    stored = getattr(model, STORED_AS, None)
    return " + ".join(shares) + (f", read out of {stored}" if stored in READ_INTO_DTYPE else "")


def _is_four_bit(parameter: nn.Parameter) -> bool:
    return getattr(parameter, "quant_state", None) is not None


def _require_bitsandbytes(key: str) -> None:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"{key}: 4-bit weights need bitsandbytes (pip install 'capo_ds[4bit]', or "
            f"bitsandbytes): {error}"
        ) from error
