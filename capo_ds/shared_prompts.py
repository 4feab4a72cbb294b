"""Log-probabilities of a group's responses from one reading of their prompt.

A prompt's keys and values are the same for all its responses: they are computed once, and each
response goes on from a copy. Without gradients only: what is fixed over an update's steps.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import cast

import torch
from peft import PeftModel
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from capo_ds.architecture import (
    cache_name,
    forward_takes,
    position_ids,
    state_is_in_the_layers,
    taken,
)
from capo_ds.config import ConfigError
from capo_ds.log_probs import (
    WHOLE_LOGITS,
    bound_of,
    forward_replaced,
    largest_logit,
    linear_log_probs,
    of_logits,
    spread,
    token_log_probs,
    under,
)

READS_ONCE = "capo_ds_reads_prompts_once"  # attribute of a policy that can go on from a prompt


@dataclass(frozen=True)
class Prompts:
    """Q prompts as the policy has read them.

    mask: (Q, P), left-padded. states: (Q, H or V) at the last token, what goes into the output
    layer, or of a policy whose logits are taken whole, what comes out at the end.
    """

    mask: Tensor
    cache: DynamicCache
    states: Tensor


@torch.no_grad()
def read_prompts(policy: PeftModel, prompt_ids: Tensor, prompt_mask: Tensor) -> Prompts:
    """prompt_ids, prompt_mask: (Q, P), left-padded."""
    mask = prompt_mask.long()
    states, cache = _pass(policy, prompt_ids, mask, position_ids(mask), None, kept=1)
    return Prompts(mask, cache, states[:, 0])


@torch.no_grad()
def response_log_probs(
    policy: PeftModel,
    prompts: Prompts,
    of_prompt: Tensor,
    completion_ids: Tensor,
    completion_mask: Tensor,
    temperature: float,
) -> Tensor:
    """(B, T) as `token_log_probs` has them, of responses to prompts that have been read.

    of_prompt: (B,) the number of each response's prompt. completion_ids, completion_mask: (B, T).
    """
    states = prompts.states[of_prompt, None]
    inputs = completion_ids[:, :-1]  # the last token predicts nothing
    if inputs.shape[1]:
        mask = torch.cat([prompts.mask[of_prompt], completion_mask[:, :-1].long()], 1)
        positions = position_ids(mask)[:, prompts.mask.shape[1] :]
        cache = _rows(prompts.cache, of_prompt)
        more, _ = _pass(policy, inputs, mask, positions, cache, kept=inputs.shape[1])
        states = torch.cat([states, more], 1)
    tokens = int(completion_mask.sum())
    states = under(completion_mask, states, tokens)
    targets = under(completion_mask, completion_ids, tokens)
    if getattr(policy, WHOLE_LOGITS, False):
        values = of_logits(states, targets, temperature)
    else:
        head = policy.get_output_embeddings()
        values = linear_log_probs(
            states.to(head.weight.dtype), head.weight, head.bias, targets, temperature
        )
    return spread(values, completion_mask)


def find_whether_prompts_are_read_once(policy: PeftModel, device: torch.device) -> None:
    """Note on the policy whether it can go on from a prompt's keys and values with many tokens at
    a time: whether its cache holds nothing else (no states, no windows), and some rows, passed
    both ways, come out alike."""
    setattr(
        policy, READS_ONCE, _cache_is_plain(policy, device) and _both_ways_agree(policy, device)
    )


def reads_prompts_once(policy: PeftModel) -> bool:
    """What `find_whether_prompts_are_read_once` has found."""
    return getattr(policy, READS_ONCE, False)


def _cache_is_plain(policy: PeftModel, device: torch.device) -> bool:
    base = policy.get_base_model()
    takes = forward_takes(base)
    try:
        named = cache_name(base) == "past_key_values"
    except ConfigError:  # no cache at all
        return False
    if not named or not takes("position_ids") or state_is_in_the_layers(base):
        return False
    ids = torch.arange(4, device=device)[None]
    with torch.no_grad():
        cache = policy(input_ids=ids, use_cache=True).past_key_values
    return type(cache) is DynamicCache and all(
        type(layer) is DynamicLayer for layer in cache.layers
    )


def _both_ways_agree(policy: PeftModel, device: torch.device) -> bool:
    """Two responses to each of two prompts of unequal lengths."""
    prompt_ids = torch.arange(8, device=device).view(2, 4)
    prompt_mask = torch.ones_like(prompt_ids).bool()
    prompt_mask[0, :1] = False
    of_prompt = torch.tensor([0, 1, 1, 0], device=device)
    completion_ids = torch.arange(16, device=device).view(4, 4)
    completion_mask = torch.ones_like(completion_ids).bool()
    completion_mask[2, 2:] = False
    ids = torch.cat([prompt_ids[of_prompt], completion_ids], 1)
    mask = torch.cat([prompt_mask[of_prompt], completion_mask], 1).long()
    with torch.no_grad():
        expected = token_log_probs(policy, ids, mask, completion_mask, 1.0)
    read = read_prompts(policy, prompt_ids, prompt_mask)
    found = response_log_probs(policy, read, of_prompt, completion_ids, completion_mask, 1.0)
    bound = bound_of(policy, largest_logit(policy, ids, mask))
    return bool(((found - expected).abs().sum(1) / completion_mask.sum(1)).max() <= bound)


def _pass(
    policy: PeftModel,
    ids: Tensor,
    mask: Tensor,
    positions: Tensor,
    cache: DynamicCache | None,
    kept: int,
) -> tuple[Tensor, DynamicCache]:
    """States of the last `kept` tokens (see `Prompts`), and the cache after them."""
    head = policy.get_output_embeddings()
    whole = getattr(policy, WHOLE_LOGITS, False)
    with nullcontext() if whole else forward_replaced(head, lambda hidden: hidden[:, -kept:]):
        output = policy(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            **taken(policy.get_base_model(), logits_to_keep=kept),
        )
    return output.logits[:, -kept:], output.past_key_values


def _rows(cache: DynamicCache, rows: Tensor) -> DynamicCache:
    """A cache of its own for these rows; one may come many times."""
    layers = cast(list[DynamicLayer], cache.layers)  # `_cache_is_plain`
    known = [(cast(Tensor, layer.keys), cast(Tensor, layer.values)) for layer in layers]
    return DynamicCache([(keys[rows], values[rows]) for keys, values in known])
