"""What the user reads before and after a run."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel

from capo_ds.config import Config
from capo_ds.models import LOGIT_CHUNK_TOKENS

GIB = 2**30
SAMPLING_BYTES = 3 * 4 + 2 * 8  # a vocabulary entry: logits, log-probs, probs; two in float64
TRAINED_BYTES = 4 * 4  # a LoRA factor, its gradient and AdamW's two moments, in float32


def startup_summary(config: Config, policy: PeftModel, facts: dict[str, Any]) -> str:
    """Model, ranks, data, every choice of the objective, and the estimated memory."""
    trainable = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    total = sum(p.numel() for p in policy.parameters())
    rollout, objective = config.rollout, config.objective
    samples = rollout.prompts_per_step * rollout.group_size
    rows = {
        "model": f"{config.model.path} ({config.model.dtype}), {(total - trainable) / 1e6:.2f} M "
        f"frozen + {trainable / 1e6:.2f} M LoRA parameters (rank {config.model.lora_rank}, "
        f"alpha {config.model.lora_alpha:g}, {' '.join(config.model.lora_targets)})",
        **facts,
        "rollout": f"{rollout.prompts_per_step} prompts x {rollout.group_size} responses = "
        f"{samples} samples a step, up to {rollout.max_new_tokens} tokens, "
        f"temperature {rollout.temperature:g}",
        "aggregator": config.aggregator
        + (f" {_values(config.capo)}" if config.aggregator == "capo" else ""),
        "gradients": _gradients_row(config),
        "objective": _values(objective),
        "optimizer": _values(config.optimizer),
        "memory per rank": _memory_row(config, policy, facts["ranks"]),
        "output": config.train.output_dir,
    }
    width = max(map(len, rows))
    lines = (f"{name:>{width}}  {value}" for name, value in rows.items())
    return "\n".join(line.replace("\n", "\n" + " " * width) for line in lines)


def estimate_memory(config: Config, policy: PeftModel, ranks: int) -> dict[str, int]:
    """Bytes on one rank by purpose and, in brackets, the key that lowers it.

    For the run's shapes; activations, which train.micro_batch_size bounds, are not counted.
    """
    trainable = [p for p in policy.parameters() if p.requires_grad]
    size = sum(p.numel() for p in trainable)
    rollout, architecture = config.rollout, policy.get_base_model().config
    samples = -(-rollout.prompts_per_step // ranks) * rollout.group_size
    vocabulary = policy.get_output_embeddings().weight.shape[0]
    heads = getattr(architecture, "num_key_value_heads", architecture.num_attention_heads)
    head_size = getattr(architecture, "head_dim", None) or (
        architecture.hidden_size // architecture.num_attention_heads
    )
    tokens = rollout.max_prompt_tokens + rollout.max_new_tokens
    weight_bytes = torch.finfo(getattr(torch, config.model.dtype)).bits // 8
    sampled = min(samples, rollout.batch_size)
    cache = sampled * tokens * architecture.num_hidden_layers * 2 * heads * head_size
    estimate = {
        "weights": sum(p.numel() * p.element_size() for p in policy.parameters()) - 4 * size,
        "LoRA and optimizer (model.lora_rank)": size * TRAINED_BYTES,
        "logits in training": 3 * 4 * LOGIT_CHUNK_TOKENS * vocabulary,
        "KV cache at most (rollout.batch_size)": cache * weight_bytes,
        "sampling (rollout.batch_size)": sampled * vocabulary * SAMPLING_BYTES,
    }
    if config.uses_per_sample_gradients:
        per_update = -(-samples // config.objective.minibatches)
        if config.gradients.store == "device":
            key = "per-sample gradients (gradients.store, objective.minibatches)"
            estimate[key] = per_update * size * 4
        if config.gradients.sketch != "none":
            key = "sketches (gradients.sketch_dim)"
            estimate[key] = per_update * config.gradients.sketch_dim * 4
    return estimate


def final_table(before: float | None, after: float | None, seconds: dict[str, float]) -> str:
    """Greedy test accuracy before and after, and where the time went (seconds by phase)."""
    lines = []
    if before is not None and after is not None:
        gain = 100 * (after - before)
        lines += [
            f"test accuracy before  {before:7.1%}",
            f"test accuracy after   {after:7.1%}  ({gain:+.1f} points)",
        ]
    total = sum(seconds.values()) or 1.0
    lines.append(f"{'time, whole run':<20}  {total:7.1f} s")
    lines += [
        f"{phase.removeprefix('time/'):<20}  {spent:7.1f} s  {spent / total:4.0%}"
        for phase, spent in sorted(seconds.items(), key=lambda item: -item[1])
    ]
    return "\n".join(lines)


def _gradients_row(config: Config) -> str:
    if config.gradients.sketch == "none":
        return "exact Gram matrix"
    return _values(config.gradients)


def _memory_row(config: Config, policy: PeftModel, ranks: int) -> str:
    estimate = estimate_memory(config, policy, ranks)
    parts = "".join(f"\n  {_size(size):>10}  {name}" for name, size in estimate.items())
    row = f"about {_size(sum(estimate.values()))}, besides activations"
    if torch.cuda.is_available():
        row += f", of {_size(torch.cuda.mem_get_info()[1])} on the device"
    return row + parts


def _size(count: int) -> str:
    return f"{count / GIB:.2f} GiB" if count >= GIB else f"{count / 2**20:.1f} MiB"


def _values(section: Any) -> str:
    return ", ".join(f"{name} {value}" for name, value in section.model_dump().items())
