"""The policy: a causal LM with a LoRA adapter; its reference is the same LM, adapter off."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from capo_ds.config import BUILTIN_MODELS, ConfigError, ModelConfig

LOGIT_CHUNK_TOKENS = 1024
CPU = torch.device("cpu")


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


def load_policy(config: ModelConfig, seed: int, device: torch.device = CPU) -> PeftModel:
    """The LM with a fresh LoRA adapter (B = 0, A from the seed) in float32, on the device.

    Raises:
        ConfigError: if the model cannot be loaded, or has no layer named in `lora_targets`.
    """
    base = load_base_model(config)
    _check_rank(base, config.lora_rank)
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        use_rslora=config.rslora,
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
    policy.to(device)
    if config.dtype == "bfloat16":
        _compute_in(policy, torch.bfloat16, device)
    if config.gradient_checkpointing:
        policy.gradient_checkpointing_enable({"use_reentrant": False})
    if isinstance(policy.get_output_embeddings(), LoraLayer):
        raise ConfigError("model.lora_targets: the output layer cannot have LoRA factors")
    _check_output_head(policy, device)
    return policy


def _check_rank(base: nn.Module, rank: int) -> None:
    """Refuse a rank that no layer has, before its factors fill the memory."""
    linear = [module for module in base.modules() if isinstance(module, nn.Linear)]
    full = max(min(module.in_features, module.out_features) for module in linear)
    if rank > full:
        raise ConfigError(
            f"model.lora_rank: {rank} is more than the rank of any layer, {full}; lower it"
        )


def _compute_in(policy: PeftModel, dtype: torch.dtype, device: torch.device) -> None:
    """Mixed precision: the float32 LoRA factors are rounded for each forward pass, which then runs
    in the base weights' dtype throughout; PEFT would widen every layer's input to float32."""
    for module in policy.modules():
        if isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = False
    policy.forward = torch.autocast(device.type, dtype)(policy.forward)


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

    The output layer makes log-probabilities where it would make logits, for completion tokens
    only. The pass goes through the whole model all the same, so that hooks on any module (ZeRO
    3's, which gather its weights) run as in an ordinary one.
    """
    length = completion_mask.shape[1]
    targets = input_ids[:, -length:][completion_mask]  # (tokens,)
    head = policy.get_output_embeddings()

    def log_probs(hidden: Tensor) -> Tensor:
        hidden = hidden[:, -length - 1 : -1][completion_mask]  # (tokens, H), predicting the next
        return linear_log_probs(hidden, head.weight, head.bias, targets, temperature)

    with _forward_replaced(head, log_probs):
        values = policy(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids(attention_mask),
            logits_to_keep=length + 1,
            use_cache=False,
        ).logits
    return values.new_zeros(completion_mask.shape).masked_scatter(completion_mask, values)


def linear_log_probs(
    hidden: Tensor,  # (tokens, H)
    weight: Tensor,  # (V, H), frozen
    bias: Tensor | None,  # (V,), frozen
    targets: Tensor,  # (tokens,)
    temperature: float,
) -> Tensor:  # (tokens,)
    """log softmax((W h + b) / temperature)[target], differentiable in h alone.

    Logits are made for `LOGIT_CHUNK_TOKENS` tokens at a time and never kept. The gradient is the
    upstream number of the token times (W[target] - W' p) / temperature, so it is made while the
    logits are at hand, and the backward pass is a multiplication: two products with W in all,
    as if all logits had been kept, where recomputing them would need a third.
    """
    return _LinearLogProbs.apply(hidden, weight, bias, targets, temperature)


class _LinearLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
    ) -> Tensor:
        differentiable = ctx.needs_input_grad[0]
        values = hidden.new_empty(len(hidden), dtype=torch.promote_types(hidden.dtype, torch.float))
        slopes = torch.empty_like(hidden) if differentiable else None
        for first in range(0, len(hidden), LOGIT_CHUNK_TOKENS):
            rows = slice(first, first + LOGIT_CHUNK_TOKENS)
            target = targets[rows, None]
            logits = nn.functional.linear(hidden[rows], weight, bias).to(values) / temperature
            normaliser = logits.logsumexp(1, keepdim=True)
            values[rows] = (logits.gather(1, target) - normaliser).squeeze(1)
            if differentiable:
                residual = logits.sub_(normaliser).exp_().neg_()  # one-hot target minus p
                residual.scatter_add_(1, target, residual.new_ones(target.shape))
                slopes[rows] = residual.div_(temperature).to(weight) @ weight
        ctx.save_for_backward(slopes)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        return (gradient[:, None] * slopes).to(slopes), None, None, None, None


@contextmanager
def _forward_replaced(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, calling the module runs its hooks and, in place of its own computation, `forward`."""
    module.forward = forward
    try:
        yield
    finally:
        del module.forward


def position_ids(attention_mask: Tensor) -> Tensor:
    """Positions that start at 0 on the first real token of each left-padded row."""
    return (attention_mask.cumsum(1) - 1).clamp(min=0)


def _check_output_head(policy: PeftModel, device: torch.device) -> None:
    """Refuse architectures whose logits are more than `lm_head(hidden)` (soft caps, scales)."""
    ids = torch.arange(4, device=device)[None]
    mask = torch.ones_like(ids)
    name = policy.get_base_model().config.model_type
    with torch.no_grad():
        try:
            ours = token_log_probs(policy, ids, mask, mask[:, 1:].bool(), temperature=1.0)
        except TypeError as error:
            raise ConfigError(f"model.path: {name} models are not supported: {error}") from error
        logits = policy(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
    theirs = logits.log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)
    if not torch.allclose(ours, theirs, rtol=1e-2, atol=1e-2):
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
