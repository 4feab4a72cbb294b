"""What a sampler returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from capo_ds.seeding import Stream, generator

Rows = TypeVar("Rows", bound="Rollout")


PROMPT = {"layout": "prompt"}  # a field (n, P), left-padded
TOKEN = {"layout": "token"}  # a field (n, T), right-padded


@dataclass
class Rollout:
    """n sampled responses; the G responses of a prompt are neighbours. T: longest response."""

    prompt_ids: Tensor = field(metadata=PROMPT)
    prompt_mask: Tensor = field(metadata=PROMPT)  # bool
    completion_ids: Tensor = field(metadata=TOKEN)  # end-of-sequence token included
    completion_mask: Tensor = field(metadata=TOKEN)  # bool
    log_probs: Tensor = field(metadata=TOKEN)  # of the sampled tokens, by the sampler; 0 at padding
    entropy: Tensor = field(
        metadata=TOKEN
    )  # of the distributions sampled from, in nats; 0 at padding
    truncated: Tensor  # (n,) of bool: cut at the limit, no end-of-sequence token

    def __len__(self) -> int:
        return len(self.prompt_ids)

    @property
    def lengths(self) -> Tensor:
        """(n,) response lengths in tokens."""
        return self.completion_mask.sum(1)

    def input_ids(self) -> Tensor:
        """(n, P + T), as `token_log_probs` takes it."""
        return torch.cat([self.prompt_ids, self.completion_ids], 1)

    def attention_mask(self) -> Tensor:
        """(n, P + T)."""
        return torch.cat([self.prompt_mask, self.completion_mask], 1).long()

    def take(self: Rows, indices: Tensor | Sequence[int]) -> Rows:
        """Some of the responses, padded no further than they need."""
        index = torch.as_tensor(indices, dtype=torch.long, device=self.prompt_ids.device)
        first, last = 0, None
        if len(index):
            first = self.prompt_mask.shape[1] - int(self.prompt_mask[index].sum(1).max())
            last = max(int(self.lengths[index].max()), 1)
        columns = {"prompt": slice(first, None), "token": slice(0, last)}
        taken = {}
        for item in fields(self):
            rows = getattr(self, item.name)[index]
            layout = item.metadata.get("layout")
            taken[item.name] = rows[:, columns[layout]] if layout else rows
        return type(self)(**taken)


def left_pad(prompts: list[list[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids (n, P) and their mask (n, P) of bool."""
    width = max((len(prompt) for prompt in prompts), default=0)
    ids = torch.full((len(prompts), width), pad, dtype=torch.long)
    mask = torch.zeros(len(prompts), width, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
        mask[row, width - len(prompt) :] = True
    return ids.to(device), mask.to(device)


def concatenate(parts: list[Rollout], pad: int) -> Rollout:
    """Rollouts one after the other, padded to the widest; `pad` fills token ids."""
    joined = {}
    for item in fields(Rollout):
        values = [getattr(part, item.name) for part in parts]
        if layout := item.metadata.get("layout"):
            width = max(value.shape[1] for value in values)
            fill = pad if item.name.endswith("_ids") else 0
            values = [_widen(value, width, layout == "prompt", fill) for value in values]
        joined[item.name] = torch.cat(values)
    return Rollout(**joined)


def _widen(values: Tensor, width: int, left: bool, fill: int) -> Tensor:
    missing = width - values.shape[1]
    return torch.nn.functional.pad(values, (missing, 0) if left else (0, missing), value=fill)


def uniforms(seed: int, step: int, prompt: int, samples: int, tokens: int) -> np.ndarray:
    """(samples, tokens) numbers in [0, 1) that sample one prompt's responses in one step.

    They depend on nothing else, so a run samples the same responses on any number of ranks, in
    any batches, and after resuming, without the state of a generator being kept.
    """
    return generator(seed, Stream.SAMPLING, step, prompt).random((samples, tokens))
