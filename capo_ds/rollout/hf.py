"""Sampling with the training model itself: batched decoding over a KV cache.

Each prompt is read once for its G responses, rows that have ended leave the batch, and tokens are
drawn by inverting the distribution at given uniform numbers (see `uniforms`). The cache is the
model's own, of whatever class (see `caches`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, StopStringCriteria

from capo_ds.architecture import (
    cache_name,
    forward_takes,
    position_ids,
    state_is_in_the_layers,
)
from capo_ds.rollout.base import (
    WHOLE,
    Draw,
    Rollout,
    SamplerBytes,
    SamplerRun,
    SamplingShapes,
    Truncation,
    check_prompts,
    concatenate,
    left_pad,
    model_context,
    uniforms,
)
from capo_ds.rollout.caches import select_rows

LOGIT_BYTES = 3 * 4 + 2 * 8  # a vocabulary entry: logits, log-probs, probs; two in float64
COMPACT_BELOW = 0.8  # drop ended rows once fewer than this share of the batch is alive


def hf(run: SamplerRun) -> HuggingFaceSampler:
    """The sampler of a run."""
    rollout, tokenizer = run.config.rollout, run.tokenizer
    limits = rollout.max_new_tokens, rollout.batch_size
    stop = stop_at(tokenizer, run.config.prompt.stop)
    return HuggingFaceSampler(run.policy, run.ends, run.pad, *limits, stop)


def memory(shapes: SamplingShapes) -> SamplerBytes:
    """Its cache, and what drawing from the logits takes."""
    return SamplerBytes(shapes.cache + shapes.sequences * shapes.vocabulary * LOGIT_BYTES)


class HuggingFaceSampler:
    """A `Sampler` on this rank's training model, whose weights are always in step.

    ends: the tokens that end a response. stop: from token ids (rows, tokens so far), the rows that
    have ended otherwise; see `stop_at`. `temperature` 0 decodes greedily.
    """

    collective = False
    shares_policy = True

    def __init__(
        self,
        model: nn.Module,
        ends: Sequence[int],
        pad: int,
        max_new_tokens: int,
        batch_size: int,
        stop: Callable[[Tensor], Tensor] | None = None,
    ):
        self.model, self.pad, self.stop = model, pad, stop
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size
        self.context = model_context(model)
        self._ends = torch.tensor(ends)
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        self._takes, self._cache_name = forward_takes(base), cache_name(base)
        # Where the layers keep the state there is no cache to select rows of: each response reads
        # its prompt itself, and stays in the batch to its end.
        self._fixed_rows = state_is_in_the_layers(base)

    def awake(self) -> AbstractContextManager[None]:
        return nullcontext()

    def sync(self) -> None:
        pass  # there is but one set of weights

    def sample(
        self,
        prompts: list[list[int]],
        draws: list[Draw],
        samples: int,
        temperature: float,
        max_new_tokens: int | None = None,
        truncation: Truncation = WHOLE,
    ) -> Rollout:
        limit = max_new_tokens or self.max_new_tokens
        noise = [uniforms(*draw, samples, limit) for draw in draws]
        return self._in_batches(
            prompts, np.reshape(noise, (-1, samples, limit)), temperature, truncation
        )

    @torch.no_grad()
    def _in_batches(
        self,
        prompts: list[list[int]],
        noise: np.ndarray,
        temperature: float,
        truncation: Truncation,
    ) -> Rollout:
        """G responses per prompt. noise: (prompts, G, tokens), uniform in [0, 1)."""
        check_prompts(prompts, noise.shape[2], self.context)
        per_batch = max(1, self.batch_size // noise.shape[1])
        by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        batches = [by_length[i : i + per_batch] for i in range(0, len(prompts), per_batch)]
        parts = [
            self._decode([prompts[i] for i in batch], noise[batch], temperature, truncation)
            for batch in batches or [[]]
        ]
        order = torch.as_tensor(np.argsort(by_length), dtype=torch.long)
        group = torch.arange(noise.shape[1])
        return concatenate(parts, self.pad).take((order[:, None] * len(group) + group).flatten())

    def _decode(
        self,
        prompts: list[list[int]],
        noise: np.ndarray,
        temperature: float,
        truncation: Truncation,
    ) -> Rollout:
        device = next(self.model.parameters()).device
        group, limit = noise.shape[1:]
        prompt_ids, prompt_mask = left_pad(prompts, self.pad, device)
        n = len(prompts) * group
        ends = self._ends.to(device)
        uniform = torch.as_tensor(noise, device=device).reshape(n, limit)
        result = Rollout(
            prompt_ids=prompt_ids.repeat_interleave(group, 0),
            prompt_mask=prompt_mask.repeat_interleave(group, 0),
            completion_ids=torch.full((n, limit), self.pad, device=device),
            completion_mask=torch.zeros(n, limit, dtype=torch.bool, device=device),
            log_probs=torch.zeros(n, limit, device=device),
            entropy=torch.zeros(n, limit, device=device),
            truncated=torch.ones(n, dtype=torch.bool, device=device),
        )
        if n == 0:
            return result
        mask = prompt_mask.long()
        if self._fixed_rows:
            prompt_ids, mask = (part.repeat_interleave(group, 0) for part in (prompt_ids, mask))
        logits, cache = self._forward(prompt_ids, mask, position_ids(mask), None)
        if group > 1 and not self._fixed_rows:
            each = torch.arange(len(prompts), device=device).repeat_interleave(group)
            select_rows(cache, len(prompts), each)
            logits, mask = logits[each], mask[each]
        rows = torch.arange(n, device=device)  # of `result`, one per row still in the batch
        alive = torch.ones(n, dtype=torch.bool, device=device)
        for step in range(limit):
            tokens, log_probs, entropy = _draw(logits, uniform[rows, step], temperature, truncation)
            writing = rows[alive]
            result.completion_ids[writing, step] = tokens[alive]
            result.completion_mask[writing, step] = True
            result.log_probs[writing, step] = log_probs[alive]
            result.entropy[writing, step] = entropy[alive]
            ended = alive & torch.isin(tokens, ends)
            if self.stop:
                ended |= alive & self.stop(result.completion_ids[rows, : step + 1])
            result.truncated[rows[ended]] = False
            alive &= ~ended
            left = int(alive.sum())
            if left == 0 or step + 1 == limit:
                break
            if left < COMPACT_BELOW * len(rows) and not self._fixed_rows:
                select_rows(cache, len(rows), alive.nonzero().squeeze(1))
                tokens, mask, rows = tokens[alive], mask[alive], rows[alive]
                alive = alive[alive]
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            positions = mask.sum(1, keepdim=True) - 1
            logits, cache = self._forward(tokens[:, None], mask, positions, cache)
        width = max(1, int(result.completion_mask.sum(1).max()))
        for name in ("completion_ids", "completion_mask", "log_probs", "entropy"):
            setattr(result, name, getattr(result, name)[:, :width])
        return result

    def _forward(
        self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any
    ) -> tuple[Tensor, Any]:
        """Logits (rows, vocabulary) of the next token, in float32, and the cache after it.

        cache: None for the first tokens; the model then makes one of its own class.
        """
        arguments = {
            "attention_mask": mask,
            "position_ids": positions,
            "use_cache": True,
            "logits_to_keep": 1,
        }
        arguments = {name: value for name, value in arguments.items() if self._takes(name)}
        if cache is not None:
            arguments[self._cache_name] = cache
        output = self.model(input_ids=ids, **arguments)
        return output.logits[:, -1].float(), getattr(output, self._cache_name)


def stop_at(
    tokenizer: PreTrainedTokenizerBase, strings: Sequence[str]
) -> Callable[[Tensor], Tensor] | None:
    """Which rows of token ids (rows, tokens) end in one of the strings; None without strings.

    A string may end inside the last token.
    """
    if not strings:
        return None
    criterion = StopStringCriteria(tokenizer, list(strings))
    return lambda ids: criterion(ids, None)  # pyright: ignore[reportArgumentType]


def _draw(
    logits: Tensor, uniform: Tensor, temperature: float, truncation: Truncation = WHOLE
) -> tuple[Tensor, Tensor, Tensor]:
    """Token, its log-probability, and the distribution's entropy, for each row of logits."""
    all_log_probs = torch.log_softmax(logits / (temperature or 1.0), -1)
    if temperature and truncation != WHOLE:
        all_log_probs = truncate(all_log_probs, truncation)
    probs = all_log_probs.exp()
    if temperature == 0:
        tokens = logits.argmax(-1)
    else:
        cumulative = probs.double().cumsum(-1)
        # Scaled to the sum actually reached, so that rounding never points beyond the last token.
        point = uniform[:, None] * cumulative[:, -1:]
        tokens = torch.searchsorted(cumulative, point, right=True).squeeze(1)
    log_probs = all_log_probs.gather(1, tokens[:, None]).squeeze(1)
    entropy = -(probs * all_log_probs.nan_to_num(neginf=0.0)).sum(-1)
    return tokens, log_probs, entropy


def truncate(log_probs: Tensor, truncation: Truncation) -> Tensor:
    """The distributions (rows, vocabulary) on the tokens that may be drawn; -inf elsewhere.

    As vLLM does: min_p, then top_k (equals of the last stay), then the least number of likeliest
    tokens that have top_p of what is left.
    """
    if truncation.min_p:
        least = log_probs.amax(-1, keepdim=True) + math.log(truncation.min_p)
        log_probs = log_probs.masked_fill(log_probs < least, -math.inf)
    if 0 < truncation.top_k < log_probs.shape[-1]:
        least = log_probs.topk(truncation.top_k, -1).values[:, -1:]
        log_probs = log_probs.masked_fill(log_probs < least, -math.inf)
    if truncation.top_p < 1:
        ordered, places = log_probs.sort(-1)
        below = ordered.double().softmax(-1).cumsum(-1) <= 1 - truncation.top_p
        below[:, -1] = False
        log_probs = log_probs.masked_fill(below.scatter(-1, places, below), -math.inf)
    return log_probs.log_softmax(-1)
