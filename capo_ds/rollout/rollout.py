"""What a sampler returns: responses, padded to a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TypeVar

import torch
from torch import Tensor

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

    @property
    def widths(self) -> Tensor:
        """(n,) lengths of prompt and response together, in tokens."""
        return self.prompt_mask.sum(1) + self.lengths

    def responses(self) -> list[list[int]]:
        """The responses' tokens, without padding."""
        rows = zip(self.completion_ids.tolist(), self.lengths.tolist(), strict=True)
        return [ids[:length] for ids, length in rows]

    def input_ids(self) -> Tensor:
        """(n, P + T), as `token_log_probs` takes it."""
        return torch.cat([self.prompt_ids, self.completion_ids], 1)

    def attention_mask(self) -> Tensor:
        """(n, P + T)."""
        return torch.cat([self.prompt_mask, self.completion_mask], 1).long()

    def take(self: Rows, indices: Tensor | Sequence[int]) -> Rows:
        """Some of the responses, padded no further than they need."""
        taken = self.select(indices)
        if not len(taken):
            return taken
        prompt, response = taken.sizes().max(1).values.tolist()
        return taken.cut(range(len(taken)), prompt, response)

    def select(self: Rows, indices: Tensor | Sequence[int]) -> Rows:
        """Some of the responses, padded as they are: a GPU is not waited for."""
        index = torch.as_tensor(indices, dtype=torch.long, device=self.prompt_ids.device)
        return type(self)(**{item.name: getattr(self, item.name)[index] for item in fields(self)})

    def cut(self: Rows, rows: range, prompt: int, response: int) -> Rows:
        """Neighbouring responses, as views: the prompts' last and the responses' first columns.

        prompt, response: how many columns, at least those that hold tokens.
        """
        first = self.prompt_mask.shape[1] - prompt
        columns = {"prompt": slice(first, None), "token": slice(0, max(response, 1))}
        some = slice(rows.start, rows.stop)
        taken = {}
        for item in fields(self):
            values, layout = getattr(self, item.name)[some], item.metadata.get("layout")
            taken[item.name] = values[:, columns[layout]] if layout else values
        return type(self)(**taken)

    def sizes(self) -> Tensor:
        """(2, n) lengths of prompts and of responses, in tokens."""
        return torch.stack([self.prompt_mask.sum(1), self.lengths])


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


def assemble(
    prompts: list[list[int]],  # one a response
    completions: list[list[int]],  # end token included
    log_probs: list[list[float]],
    truncated: list[bool],
    pad: int,
    device: torch.device,
) -> Rollout:
    """A rollout from an engine's lists.

    An engine tells no distributions: the entropy is estimated from the one token drawn, as
    -log p, whose mean is the entropy.
    """
    prompt_ids, prompt_mask = left_pad(prompts, pad, device)
    width = max(map(len, completions), default=0)
    values = torch.zeros(len(prompts), width)
    ids, mask = torch.full(values.shape, pad), torch.zeros(values.shape, dtype=torch.bool)
    for row, (completion, numbers) in enumerate(zip(completions, log_probs, strict=True)):
        ids[row, : len(completion)] = torch.tensor(completion, dtype=torch.long)
        values[row, : len(completion)] = torch.tensor(numbers)
        mask[row, : len(completion)] = True
    return Rollout(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        completion_ids=ids.to(device),
        completion_mask=mask.to(device),
        log_probs=values.to(device),
        entropy=-values.to(device),
        truncated=torch.tensor(truncated, dtype=torch.bool, device=device),
    )
