"""Models, adapters and random responses of `benchmarks/step.py`, and variants timed in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from capo_ds.config import Config, ModelConfig, parse_config
from capo_ds.cost.unloaded import unloaded_policy
from capo_ds.distributed import comm
from capo_ds.rollout.rollout import Rollout


@dataclass(frozen=True)
class Size:
    """A model, its adapter, and the responses of one update."""

    width: int
    mlp_width: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    lora_rank: int
    samples: int
    prompt: int  # tokens
    response: int  # tokens
    micro_batch: int
    dtype: Literal["float32", "bfloat16"] = "float32"


SIZES = {
    "small": Size(256, 768, 4, 4, 4, 2048, 16, 32, 32, 64, 8),
    "medium": Size(512, 1536, 6, 8, 8, 8192, 32, 16, 64, 128, 8),
    "axes": Size(128, 384, 4, 4, 4, 512, 32, 64, 16, 32, 16),
    "1.5b": Size(1536, 8960, 28, 12, 2, 151936, 64, 512, 128, 384, 16, "bfloat16"),
}


def architecture(size: Size, **more: Any) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        intermediate_size=size.mlp_width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        **more,
    )


def make_model(size: Size, folder: Path, **more: Any) -> Path:
    """Random weights, made on the device. more: of `architecture`."""
    torch.manual_seed(0)
    with comm.device():
        model = Qwen2ForCausalLM(architecture(size, **more)).to(getattr(torch, size.dtype))
    model.save_pretrained(folder)
    return folder


def unloaded(size: Size, **more: Any) -> PeftModel:
    """The policy of that size on torch's meta device, LoRA factors on the attention.

    more: of `architecture`."""
    with TemporaryDirectory() as folder:
        architecture(size, **more).save_pretrained(folder)
        model = ModelConfig(path=folder, dtype=size.dtype, lora_rank=size.lora_rank)
        return unloaded_policy(model)


def settings(size: Size, model: Path, variant: dict) -> Config:
    gradients = {"store": "device"} | variant.get("gradients", {})
    return parse_config(
        {
            "model": {
                "path": str(model),
                "dtype": size.dtype,
                "lora_rank": size.lora_rank,
                "lora_alpha": 2 * size.lora_rank,
                "gradient_checkpointing": size.dtype == "bfloat16",
            },
            "rollout": {
                "prompts_per_step": size.samples // 8,
                "max_prompt_tokens": size.prompt,
                "max_new_tokens": size.response,
            },
            "objective": {"kl_weight": 0.0},
            "deepspeed": "ds_configs/zero0.json",
            "train": {"micro_batch_size": size.micro_batch, "output_dir": str(model)},
        }
        | variant
        | {"gradients": gradients}
    )


def random_responses(size: Size) -> Rollout:
    generator = torch.Generator().manual_seed(1)
    n, t = size.samples, size.response

    def tokens(width: int) -> Tensor:
        return torch.randint(3, size.vocabulary, (n, width), generator=generator)

    rollout = Rollout(
        prompt_ids=tokens(size.prompt),
        prompt_mask=torch.ones(n, size.prompt, dtype=torch.bool),
        completion_ids=tokens(t),
        completion_mask=torch.ones(n, t, dtype=torch.bool),
        log_probs=torch.zeros(n, t),
        entropy=torch.zeros(n, t),
        truncated=torch.zeros(n, dtype=torch.bool),
    )
    return Rollout(**{name: value.to(comm.device()) for name, value in vars(rollout).items()})


# ---------------------------------------------------------------- measuring


def clock() -> float:
    if comm.device().type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def in_turns(variants: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each variant, after one uncounted turn."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(repeats + 1):
        for name, run in variants.items():
            start = clock()
            run()
            if turn:
                seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}
