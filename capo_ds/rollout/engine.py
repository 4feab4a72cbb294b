"""What a vLLM engine is started with, inside the training process or as a server.

Imports little, so that a server can be started where nothing but vLLM is installed.
"""

from __future__ import annotations

from typing import Any

import torch

from capo_ds.architecture import context_of
from capo_ds.config import BUILTIN_MODELS, Config, ConfigError

# The probe's prompts (see there): shorter than a block of vLLM's prefix cache (16 tokens on GPUs,
# 32 in ours, 128 by default on CPU), and longer than any; and what is sampled after each.
PROBE_LENGTHS = (8, 24, 56, 144)
PROBE_TOKENS = 8
CACHE_BLOCK = 32  # tokens; small, so that the G responses to a short prompt share its cache too
MAX_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # vLLM's choices of max_lora_rank
LITTLE = 0.1


def context_length(config: Config, architecture: Any) -> int:
    """Tokens of the longest prompt and response together that an engine is prepared for.

    architecture: the model's Hugging Face config.
    """
    longest_probe = max(PROBE_LENGTHS) + PROBE_TOKENS
    response = max(config.rollout.max_new_tokens, config.evaluation.max_new_tokens or 0)
    longest = config.rollout.max_prompt_tokens + response
    return min(max(longest, longest_probe), context_of(architecture))


def model_location(config: Config) -> str:
    """Folder or hub name of the base model."""
    return str(BUILTIN_MODELS.get(config.model.path, config.model.path))


def max_rank(rank: int) -> int:
    """The least rank to prepare an engine for that holds ours. Raises `ConfigError`."""
    for allowed in MAX_RANKS:
        if rank <= allowed:
            return allowed
    raise ConfigError(f"model.lora_rank: vLLM takes ranks up to {MAX_RANKS[-1]}, not {rank}")


def _rank(config: Config) -> int:
    """Of the adapter that is made, or gone on from."""
    if config.model.adapter is None:
        return config.model.lora_rank
    from capo_ds.adapters import read_adapter

    adapter = read_adapter(config.model.adapter)
    return max([adapter.r, *(adapter.rank_pattern or {}).values()])


def check_precision(config: Config, gpu: bool) -> None:
    """Whether vLLM's LoRA kernels take it. Raises `ConfigError`."""
    if gpu and config.model.dtype == "float32":
        raise ConfigError(
            "model.dtype: float32, but vLLM's LoRA on a GPU needs bfloat16; set that, or "
            "rollout.sampler to hf"
        )


def engine_settings(config: Config, context: int) -> dict[str, Any]:
    """Arguments of `vllm.LLM`, and with dashes of `vllm serve`.

    Raises `ConfigError` for a dtype that vLLM's LoRA kernels do not take.
    """
    check_precision(config, torch.cuda.is_available())
    revisions = ("revision", "tokenizer_revision", "code_revision")
    pinned = {name: config.model.revision for name in revisions if config.model.revision}
    return pinned | {
        "model": model_location(config),
        "dtype": config.model.dtype,
        "max_model_len": context,
        "max_num_seqs": config.rollout.batch_size,
        "kv_cache_memory_bytes": int(config.rollout.vllm_cache_gib * 2**30),
        # Unused once the cache's size is given, but compared with the memory that is free.
        "gpu_memory_utilization": LITTLE,
        "block_size": CACHE_BLOCK,
        "enable_prefix_caching": True,
        "enable_lora": True,
        "max_loras": config.rollout.ahead + 1,  # those of the responses under way too
        "max_lora_rank": max_rank(_rank(config)),
        "trust_remote_code": config.model.trust_remote_code,
        "logprobs_mode": "processed_logprobs",  # at the sampling temperature, as the trainer's
        "generation_config": "vllm",  # nothing from the model's folder decides how to sample
        "enforce_eager": not torch.cuda.is_available(),
        "tensor_parallel_size": config.rollout.tensor_parallel,
        "seed": config.train.seed,
    }
