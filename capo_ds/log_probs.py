"""Log-probabilities of sampled tokens, without ever holding a batch's logits where that can be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from capo_ds.architecture import position_ids, taken
from capo_ds.distributed.zero import whole_shape

LOGIT_CHUNK_TOKENS = 1024
WHOLE_LOGITS = "capo_ds_whole_logits"  # attribute of a policy whose output layer is not the last
# Nats, mean over a row, that passes which round differently may differ by: at least the first; in
# bfloat16 logits have steps of their size times 2^-8, of which the second number counts some.
# Sound models reach a fifth of it, unsound ones pass it (tests/unit/test_bounds.py).
LOG_PROBS = {"float32": (1e-3, 64.0), "bfloat16": (0.1, 4.0)}
RAMP = 128  # logits of the check, -128 to 128: exact in bfloat16, beyond any cap


def token_log_probs(
    policy: PeftModel,
    input_ids: Tensor,  # (B, P + T): left-padded prompts, then right-padded completions
    attention_mask: Tensor,  # (B, P + T)
    completion_mask: Tensor,  # (B, T) of bool
    temperature: float,
) -> Tensor:  # (B, T)
    """Log-probability of each completion token at the sampling temperature; 0 at padding.

    The rows are moved to the left, so that all padding is behind them, where a causal model's
    tokens do not see it: the pass needs no mask, with which attention's fast kernels would do
    nothing, and is as wide as the longest row.

    The output layer makes log-probabilities where it would make logits, for completion tokens
    only. The pass goes through the whole model all the same, so that hooks on any module (ZeRO
    3's, which gather its weights) run as in an ordinary one. Of a model that changes the logits
    after its output layer (soft caps, scales), the logits of all completion tokens are held.
    """
    ids, predicting, tokens = _moved_left(input_ids, attention_mask.bool(), completion_mask)
    kept = predicting.shape[1]
    targets = under(completion_mask, input_ids[:, -completion_mask.shape[1] :], tokens)
    if getattr(policy, WHOLE_LOGITS, False):
        logits = _logits(policy, ids, None, kept)[:, -kept:]
        values = of_logits(under(predicting, logits, tokens), targets, temperature)
        return spread(values, completion_mask)
    head = policy.get_output_embeddings()

    def log_probs(hidden: Tensor) -> Tensor:
        hidden = under(predicting, hidden[:, -kept:], tokens)  # (tokens, H), predicting the next
        return linear_log_probs(hidden, head.weight, head.bias, targets, temperature)

    with forward_replaced(head, log_probs):
        values = _logits(policy, ids, None, kept)
    return spread(values, completion_mask)


def under(mask: Tensor, values: Tensor, count: int) -> Tensor:
    """values[mask], (count, *), of values (B, T, *); a GPU, told the count, is not waited for."""
    places = mask.flatten().nonzero_static(size=count).squeeze(1)
    return values.flatten(0, 1).index_select(0, places)


def spread(values: Tensor, mask: Tensor) -> Tensor:
    """Undo `under`: (B, T) from (count,), with 0 where the mask is not."""
    places = mask.flatten().nonzero_static(size=len(values)).squeeze(1)
    return values.new_zeros(mask.numel()).index_copy(0, places, values).view(mask.shape)


def _moved_left(
    input_ids: Tensor, mask: Tensor, completion_mask: Tensor
) -> tuple[Tensor, Tensor, int]:
    """The rows with their padding behind them (B, W), W the longest; of its last columns, from the
    first that predicts a completion token on, those which do, (B, K) of bool; how many they are."""
    lengths, responses = mask.sum(1), completion_mask.sum(1)
    prompts = lengths - responses
    # The one number that a GPU is waited for in a pass.
    told = torch.stack([lengths.max(), prompts.min(), responses.sum()])
    width, shortest, tokens = told.tolist()
    width, shortest = max(width, 1), max(shortest, 1)
    column = torch.arange(width, device=mask.device)
    first = mask.long().argmax(1, keepdim=True)  # the first real token's place
    places = first + torch.minimum(column, (lengths[:, None] - 1).clamp(min=0))
    start = prompts[:, None] - 1  # predicts the first completion token
    predicting = (column >= start) & (column < start + responses[:, None])
    return input_ids.gather(1, places), predicting[:, shortest - 1 :], tokens


def find_output_layer(policy: PeftModel, device: torch.device) -> None:
    """Note on the policy whether its logits are its output layer's, as they are, or must be
    taken whole from the end of its forward pass.

    Found by a pass in which the output layer returns a ramp of numbers, which must come out
    unchanged: no weights and no rounding take part.
    """
    head = policy.get_output_embeddings()
    weight = getattr(head, "weight", None)
    whole = True
    if head is not None and weight is not None:
        ids = torch.arange(4, device=device)[None]
        size = whole_shape(weight)[0]
        # Through autocast and the model's own casts: these numbers are exact in all of them.
        ramp = (torch.arange(size, device=device) % (2 * RAMP + 1) - RAMP).to(weight.dtype)
        if not ramp.is_floating_point():
            ramp = ramp.float()
        with torch.no_grad(), forward_replaced(head, lambda _: ramp.expand(1, 4, size).clone()):
            logits = _logits(policy, ids, torch.ones_like(ids), 4)
        whole = logits.shape != (1, 4, size) or not torch.equal(logits[0, 0], ramp.to(logits))
    setattr(policy, WHOLE_LOGITS, whole)


def _logits(
    policy: PeftModel, input_ids: Tensor, attention_mask: Tensor | None, kept: int
) -> Tensor:
    """attention_mask: None for rows without padding before them."""
    arguments: dict[str, Any] = {"logits_to_keep": kept, "use_cache": False}
    if attention_mask is not None:
        arguments["attention_mask"] = attention_mask
        arguments["position_ids"] = position_ids(attention_mask)
    return policy(input_ids=input_ids, **taken(policy.get_base_model(), **arguments)).logits


def of_logits(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """log softmax(logits / temperature)[target], (tokens,), at least in float32."""
    parts = [
        (part.to(torch.promote_types(part.dtype, torch.float)) / temperature)
        .log_softmax(1)
        .gather(1, target[:, None])
        .squeeze(1)
        for part, target in zip(
            logits.split(LOGIT_CHUNK_TOKENS), targets.split(LOGIT_CHUNK_TOKENS), strict=True
        )
    ]
    return torch.cat(parts)


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
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
    ) -> Tensor:
        differentiable = ctx.needs_input_grad[0]
        values = hidden.new_empty(len(hidden), dtype=torch.promote_types(hidden.dtype, torch.float))
        slopes = torch.empty_like(hidden if differentiable else hidden[:0])
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
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        return (gradient[:, None] * slopes).to(slopes), None, None, None, None


@contextmanager
def forward_replaced(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, calling the module runs its hooks and, in place of its own computation, `forward`."""
    module.forward = forward
    try:
        yield
    finally:
        del module.forward


@torch.no_grad()
def largest_logit(policy: PeftModel, input_ids: Tensor, attention_mask: Tensor) -> float:
    """max |logit| over the real tokens of some short rows: what rounding is measured by."""
    logits = _logits(policy, input_ids, attention_mask, input_ids.shape[1])
    return float(logits[attention_mask.bool()].float().abs().max())


def log_prob_bound(dtype: str, largest: float) -> float:
    """The largest mean difference, in nats a token, that rounding explains between two ways of
    computing a row's log-probabilities, for logits up to `largest`."""
    floor, steps = LOG_PROBS[dtype]
    return max(floor, steps * torch.finfo(getattr(torch, dtype)).eps * largest)


def bound_of(model: PreTrainedModel | PeftModel, largest: float) -> float:
    """`log_prob_bound` in the precision that the model is loaded in."""
    half = model.get_input_embeddings().weight.dtype == torch.bfloat16
    return log_prob_bound("bfloat16" if half else "float32", largest)
