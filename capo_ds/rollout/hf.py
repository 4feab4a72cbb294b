"""Sampling with the training model itself: batched decoding over a KV cache.

Each prompt is read once for its G responses, rows that have ended leave the batch, and tokens are
drawn by inverting the distribution at given uniform numbers (see `uniforms`). The cache is the
model's own, of whatever class (see `caches`). Prompts of unequal length share a batch if the model
decodes padded rows rightly; those whose padding reaches the state are batched by length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from capo_ds.architecture import (
    begin_state,
    cache_name,
    forward_takes,
    position_ids,
    state_is_in_the_layers,
)
from capo_ds.decoding import texts_of
from capo_ds.distributed.zero import whole_shape
from capo_ds.log_probs import bound_of
from capo_ds.rollout.base import (
    WHOLE,
    Draw,
    SamplerBytes,
    SamplerRun,
    SamplingShapes,
    Truncation,
    check_prompts,
    model_context,
    uniforms,
)
from capo_ds.rollout.caches import select_rows
from capo_ds.rollout.drawing import draw
from capo_ds.rollout.rollout import Rollout, concatenate, left_pad

LOGIT_BYTES = 4 * 4  # a vocabulary entry: logits, log-probs, probs, and one of them padded
TRIAL = (7, 5, 3, 11, 2)  # tokens that padded and unpadded decoding are compared on
MORE_TOKENS = 8  # than a stop string has bytes, for tokens without any text, that are looked at
PADDING = 3  # columns of padding before them
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
        model: PreTrainedModel | PeftModel,
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
        self._base = cast(PreTrainedModel, base)
        self._embedding = cast(nn.Embedding, self._base.get_input_embeddings())
        self._takes, self._cache_name = forward_takes(self._base), cache_name(self._base)
        # Where the layers keep the state there is no cache to select rows of: each response reads
        # its prompt itself, and stays in the batch to its end.
        self._fixed_rows = state_is_in_the_layers(self._base)
        self._pads: bool | None = None  # whether rows may be padded; None: not yet tried

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
        batches = self._batches([len(prompts[index]) for index in by_length], per_batch)
        batches = [by_length[batch] for batch in batches]
        parts = [
            self._decode([prompts[i] for i in batch], noise[batch], temperature, truncation)
            for batch in batches or [[]]
        ]
        order = torch.as_tensor(np.argsort(by_length), dtype=torch.long)
        group = torch.arange(noise.shape[1])
        return concatenate(parts, self.pad).take((order[:, None] * len(group) + group).flatten())

    def _batches(self, lengths: list[int], size: int) -> list[slice]:
        """Neighbours that share a batch, of prompts in the order of their lengths (tokens)."""
        whole = [slice(i, min(i + size, len(lengths))) for i in range(0, len(lengths), size)]
        if all(lengths[part.start] == lengths[part.stop - 1] for part in whole):
            return whole
        if self._pads is None:
            self._pads = self._decodes_padded_rows()
        if self._pads:
            return whole
        parts, first = [], 0
        for i in range(1, len(lengths) + 1):
            if i in (len(lengths), first + size) or lengths[i] != lengths[first]:
                parts.append(slice(first, i))
                first = i
        return parts

    def _decodes_padded_rows(self) -> bool:
        """Whether the model, given a row with padding before it, goes on as without the padding.

        Some models let padding into a recurrent state or a convolution (RWKV, RecurrentGemma), or
        take the wrong columns of the mask while decoding (MiniMax).
        """
        device = next(self.model.parameters()).device
        vocabulary = whole_shape(self._embedding.weight)[0]
        ids = torch.tensor([TRIAL], device=device) % vocabulary
        found = []
        for padding in (0, PADDING):
            prompt = torch.nn.functional.pad(ids[:, :-1], (padding, 0), value=self.pad)
            mask = torch.ones_like(prompt)
            mask[:, :padding] = 0
            first, cache = self._forward(prompt, mask, position_ids(mask), None)
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)
            last = self._forward(ids[:, -1:], mask, position_ids(mask)[:, -1:], cache)[0]
            found.append(torch.cat([first, last]))
        bound = bound_of(self._base, float(found[0].abs().max()))
        plain, padded = (logits.log_softmax(-1) for logits in found)
        return bool((plain - padded).abs().mean(-1).max() <= bound)

    def _decode(
        self,
        prompts: list[list[int]],
        noise: np.ndarray,
        temperature: float,
        truncation: Truncation,
    ) -> Rollout:
        device = next(self.model.parameters()).device
        group, limit = noise.shape[1:]
        prompt_ids, mask = left_pad(prompts, self.pad, device)
        result = _unwritten(prompt_ids, mask, group, limit, self.pad)
        if not prompts:
            return result
        n = len(result)
        ends = self._ends.to(device)
        uniform = torch.as_tensor(noise, device=device).reshape(n, limit)
        logits, mask, cache = self._read(prompt_ids, mask.long(), group)
        rows = torch.arange(n, device=device)  # of `result`, one per row still in the batch
        alive = torch.ones(n, dtype=torch.bool, device=device)
        width = 0
        while True:
            drawn = draw(logits, uniform[:, width][rows], temperature, truncation)
            self._write(result, width, rows, alive, drawn)
            width += 1
            tokens = drawn[0]
            ended = torch.isin(tokens, ends)
            if self.stop:
                ended |= self.stop(result.completion_ids[:, :width][rows])
            alive = alive & ~ended
            left = int(alive.sum())  # the one number of a token that is waited for
            if left == 0 or width == limit:
                break
            if left < COMPACT_BELOW * len(rows) and not self._fixed_rows:
                kept = alive.nonzero_static(size=left).squeeze(1)
                select_rows(cache, len(rows), kept)
                tokens, mask, rows, alive = tokens[kept], mask[kept], rows[kept], alive[kept]
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            positions = mask.sum(1, keepdim=True) - 1
            logits, cache = self._forward(tokens[:, None], mask, positions, cache)
        result.truncated[rows] = alive
        return result.cut(range(n), prompt_ids.shape[1], width)

    def _read(self, ids: Tensor, mask: Tensor, group: int) -> tuple[Tensor, Tensor, Any]:
        """Prompts (prompts, width) for G responses each: logits of the first token and mask, a row
        a response, and the cache."""
        if self._fixed_rows:
            ids, mask = (part.repeat_interleave(group, 0) for part in (ids, mask))
        logits, cache = self._forward(ids, mask, position_ids(mask), None)
        if group > 1 and not self._fixed_rows:
            each = torch.arange(len(ids), device=ids.device).repeat_interleave(group)
            select_rows(cache, len(ids), each)
            logits, mask = logits[each], mask[each]
        return logits, mask, cache

    def _write(
        self,
        result: Rollout,
        column: int,
        rows: Tensor,
        alive: Tensor,
        drawn: tuple[Tensor, Tensor, Tensor],
    ) -> None:
        """The tokens of a column, with their log-probabilities and entropies.

        Rows that have ended write as well, what stands there already: masks would have to become
        lists first, for which a GPU's host waits.
        """
        tokens, log_probs, entropy = drawn
        result.completion_ids[:, column][rows] = tokens.where(alive, self.pad)
        result.completion_mask[:, column][rows] = alive
        result.log_probs[:, column][rows] = log_probs.where(alive, 0.0)
        result.entropy[:, column][rows] = entropy.where(alive, 0.0)

    def _forward(
        self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any
    ) -> tuple[Tensor, Any]:
        """Logits (rows, vocabulary) of the next token, in float32, and the cache after it.

        cache: None for the first tokens; the model then makes one of its own class.
        """
        if cache is None and self._fixed_rows:
            cache = begin_state(self._base, len(ids), ids.device, self._embedding.weight.dtype)
        arguments = {
            "attention_mask": mask,
            "position_ids": positions,
            "use_cache": True,
            "logits_to_keep": 1,
        }
        if cache is not None:
            if self._cache_name != "past_key_values":  # no attention: what is masked is the new
                del arguments["attention_mask"]
            arguments[self._cache_name] = cache
        arguments = {name: value for name, value in arguments.items() if self._takes(name)}
        output = self.model(input_ids=ids, **arguments)
        return output.logits[:, -1].float(), getattr(output, self._cache_name, cache)


def _unwritten(
    prompt_ids: Tensor, prompt_mask: Tensor, group: int, limit: int, pad: int
) -> Rollout:
    """G rows of each prompt, whose responses are still to be written."""
    n, device = len(prompt_ids) * group, prompt_ids.device
    return Rollout(
        prompt_ids=prompt_ids.repeat_interleave(group, 0),
        prompt_mask=prompt_mask.repeat_interleave(group, 0),
        completion_ids=torch.full((n, limit), pad, device=device),
        completion_mask=torch.zeros(n, limit, dtype=torch.bool, device=device),
        log_probs=torch.zeros(n, limit, device=device),
        entropy=torch.zeros(n, limit, device=device),
        truncated=torch.zeros(n, dtype=torch.bool, device=device),
    )


def stop_at(
    tokenizer: PreTrainedTokenizerBase, strings: Sequence[str]
) -> Callable[[Tensor], Tensor] | None:
    """Which rows of token ids (rows, tokens) have come to one of the strings; None without strings.

    Their ends are read as the text that is judged: a string may end inside the last token, and a
    letter of it may be several tokens (bytes).
    """
    if not strings:
        return None
    tokens = max(len(string.encode()) for string in strings) + MORE_TOKENS

    def come_to(ids: Tensor) -> Tensor:
        texts = texts_of(tokenizer, ids[:, -tokens:].tolist(), special=True)
        found = [any(string in text for string in strings) for text in texts]
        return torch.tensor(found, device=ids.device)

    return come_to
