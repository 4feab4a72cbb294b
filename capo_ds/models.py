"""The policy: a causal LM with a LoRA adapter; its reference is the same LM, adapter off."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from capo_ds.config import BUILTIN_MODELS, ConfigError, ModelConfig

LOGIT_CHUNK_TOKENS = 1024
# Nothing in a chunk is random, so no generator's state need be copied for the second run.
_checkpointed = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with a padding token. Raises `ConfigError` if it cannot be loaded."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(_location(path))
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.path: no tokenizer at {path!r}: {error}") from error
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"model.path: the tokenizer of {path!r} has no end-of-sequence token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base_model(config: ModelConfig) -> torch.nn.Module:
    """The causal LM without adapter, all dropout off: ratios need a deterministic policy."""
    location = _location(config.path)
    try:
        architecture = _without_dropout(AutoConfig.from_pretrained(location))
        return AutoModelForCausalLM.from_pretrained(
            location, config=architecture, dtype=getattr(torch, config.dtype)
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.path: cannot load {config.path!r}: {error}") from error


def load_policy(config: ModelConfig, seed: int) -> PeftModel:
    """The LM with a fresh LoRA adapter (B = 0, A from the seed) in float32.

    Raises:
        ConfigError: if the model cannot be loaded, or has no layer named in `lora_targets`.
    """
    base = load_base_model(config)
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        target_modules=list(config.lora_targets),
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(seed)
    try:
        policy = get_peft_model(base, lora)
    except ValueError as error:
        linear = {n.rpartition(".")[2] for n, m in base.named_modules() if isinstance(m, nn.Linear)}
        raise ConfigError(
            f"model.lora_targets: {config.lora_targets}: {error} Its linear layers: "
            f"{', '.join(sorted(linear))}"
        ) from error
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if config.gradient_checkpointing:
        policy.gradient_checkpointing_enable({"use_reentrant": False})
    if isinstance(policy.get_output_embeddings(), LoraLayer):
        raise ConfigError("model.lora_targets: the output layer cannot have LoRA factors")
    _check_output_head(policy)
    return policy


@contextmanager
def reference_policy(policy: PeftModel):
    """Inside, the model is the reference: the base with the adapter off, without gradients."""
    with torch.no_grad(), policy.disable_adapter():
        yield policy


def token_log_probs(
    policy: PeftModel,
    input_ids: Tensor,  # (B, P + T): left-padded prompts, then right-padded completions
    attention_mask: Tensor,  # (B, P + T)
    completion_mask: Tensor,  # (B, T) of bool
    temperature: float,
) -> Tensor:  # (B, T)
    """Log-probability of each completion token at the sampling temperature; 0 at padding.

    Logits are made for completion tokens only, `LOGIT_CHUNK_TOKENS` at a time, and recomputed in
    the backward pass, so that tokens x vocabulary never stands in memory at once.
    """
    length = completion_mask.shape[1]
    hidden = _hidden_states(policy, input_ids, attention_mask)
    hidden = hidden[:, -length - 1 : -1][completion_mask]  # (tokens, H), predicting the next token
    targets = input_ids[:, -length:][completion_mask]  # (tokens,)
    head = policy.get_output_embeddings()
    chunks = [
        _checkpointed(_chunk_log_probs, head, part, target, temperature)
        for part, target in zip(
            hidden.split(LOGIT_CHUNK_TOKENS), targets.split(LOGIT_CHUNK_TOKENS), strict=True
        )
    ]
    log_probs = torch.cat(chunks)
    return log_probs.new_zeros(completion_mask.shape).masked_scatter(completion_mask, log_probs)


def _chunk_log_probs(
    head: torch.nn.Module, hidden: Tensor, targets: Tensor, temperature: float
) -> Tensor:
    logits = head(hidden)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    return logits.gather(1, targets[:, None]).squeeze(1) - logits.logsumexp(1)


def _hidden_states(policy: PeftModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    decoder = policy.get_base_model().get_decoder()
    return decoder(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=position_ids(attention_mask),
        use_cache=False,
    ).last_hidden_state


def position_ids(attention_mask: Tensor) -> Tensor:
    """Positions that start at 0 on the first real token of each left-padded row."""
    return (attention_mask.cumsum(1) - 1).clamp(min=0)


def _check_output_head(policy: PeftModel) -> None:
    """Refuse architectures whose logits are more than `lm_head(hidden)` (soft caps, scales)."""
    ids = torch.arange(4)[None]
    mask = torch.ones_like(ids)
    with torch.no_grad():
        ours = policy.get_output_embeddings()(_hidden_states(policy, ids, mask))
        theirs = policy(input_ids=ids, attention_mask=mask).logits
    if not torch.allclose(ours.float(), theirs.float(), rtol=1e-2, atol=1e-2):
        name = policy.get_base_model().config.model_type
        raise ConfigError(
            f"model.path: {name} models change their logits after the output layer, which is not "
            "supported; choose one that does not (Qwen2, Llama, ...)"
        )


def _without_dropout(architecture: Any) -> Any:
    for name, value in architecture.to_dict().items():
        if "drop" in name and isinstance(value, float):
            setattr(architecture, name, 0.0)
    return architecture


def _location(path: str) -> Path | str:
    """Where to load from. Raises `ConfigError` for what looks like a folder and is none."""
    location = BUILTIN_MODELS.get(path, path)
    if path.startswith(("/", ".", "~")) and not Path(path).is_dir():
        raise ConfigError(f"model.path: no folder {path!r}")
    return location
