"""What a sampler is, what it is made from, and what it is asked."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import numpy as np
from peft import PeftModel
from torch import nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from capo_ds.architecture import check_positions, context_of
from capo_ds.config import Config, ConfigError
from capo_ds.rollout.rollout import Rollout
from capo_ds.seeding import Stream, generator


class Draw(NamedTuple):
    """Where in a run a prompt is sampled: all that its responses' random numbers depend on."""

    seed: int  # of the run
    step: int
    prompt: int  # number of the prompt within the step


class Truncation(NamedTuple):
    """Which tokens may be drawn, after the temperature: first min_p, then top_k, then top_p.

    What is left is sampled in proportion, so this is another policy than the one being trained:
    a rollout's log-probabilities and entropy are of what was sampled from, the trainer's of all
    tokens, and their difference is the log of the probability that was left.
    """

    top_p: float = 1.0  # the likeliest tokens that together have this probability; 1: all
    top_k: int = 0  # the likeliest tokens in number; 0: all
    min_p: float = 0.0  # tokens of at least this probability relative to the likeliest; 0: all


WHOLE = Truncation()


class Sampler(Protocol):
    """Samples responses from the policy. All methods are called on all ranks together.

    Prompts are token ids. An empty one, or one that leaves no room for a response within the
    model's context, raises `ValueError`; an empty list of prompts gives an empty rollout.
    """

    collective: bool  # whether ranks wait for each other in `sample`
    shares_policy: bool  # it samples with the training model itself: no probe after a sync

    def awake(self) -> AbstractContextManager[None]:
        """Inside, the sampler may hold the device's memory; the other methods are called there."""
        ...

    def sync(self) -> None:
        """Take over the policy's weights as they are now."""

    def sample(
        self,
        prompts: list[list[int]],
        draws: list[Draw],
        samples: int,
        temperature: float,
        max_new_tokens: int | None = None,
        truncation: Truncation = WHOLE,
    ) -> Rollout:
        """`samples` responses to each prompt, neighbours in the rollout; `draws` one a prompt.

        temperature: 0 decodes greedily.
        max_new_tokens: in place of the sampler's own limit.
        truncation: without effect on greedy decoding.
        """
        ...


@runtime_checkable
class SamplesEach(Protocol):
    """A sampler on several servers, for the probe of each."""

    def sample_each(
        self, prompts: list[list[int]], draws: list[Draw], temperature: float, max_new_tokens: int
    ) -> dict[str, Rollout]:
        """By the address of each server: its own response to each prompt."""
        ...


class Sampled(NamedTuple):
    """Responses that were asked for, and the seconds that the sampler has spent on them."""

    rollout: Rollout
    seconds: float


Asked = Callable[[], Sampled]  # waits for the responses; the same when called again


class EarlySampler(Sampler, Protocol):
    """A sampler outside the training process, which can be asked before the answer is needed.

    names_weights: every answer names the weights that it was sampled with, and the sampler refuses
    others than it was sent. Then the probe is needed after the first sync alone, for what else may
    differ. (A sampler without this attribute is probed after every one.)
    """

    names_weights: bool

    def ask(
        self,
        prompts: list[list[int]],
        draws: list[Draw],
        samples: int,
        temperature: float,
        max_new_tokens: int | None = None,
        truncation: Truncation = WHOLE,
    ) -> Asked:
        """What `sample` would return, with the weights as they are now: a later `sync` changes
        nothing in it."""
        ...

    def sample(
        self,
        prompts: list[list[int]],
        draws: list[Draw],
        samples: int,
        temperature: float,
        max_new_tokens: int | None = None,
        truncation: Truncation = WHOLE,
    ) -> Rollout:
        return self.ask(prompts, draws, samples, temperature, max_new_tokens, truncation)().rollout


def asked_of(sampler: Sampler, *arguments: Any, **options: Any) -> Asked:
    """Responses, asked for now where the sampler can be asked early; else sampled when they are
    waited for. Arguments: of `Sampler.sample`."""
    if ask := getattr(sampler, "ask", None):
        return ask(*arguments, **options)
    return lambda: Sampled(sampler.sample(*arguments, **options), seconds=0.0)


@dataclass(frozen=True)
class SamplerRun:
    """What a sampler is made from.

    name: that no other run has used. loads: whether this rank acts for all where one is enough.
    dry: only say, by a `ConfigError`, what would keep it from starting; nothing is sampled.
    """

    config: Config
    policy: PeftModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    loads: bool
    dry: bool = False

    @property
    def ends(self) -> tuple[int, ...]:
        """The tokens that end a response."""
        return end_tokens(self.policy, self.tokenizer)

    @property
    def pad(self) -> int:
        """The token that fills the rows of a batch."""
        return pad_token(self.tokenizer)


@dataclass(frozen=True)
class SamplingShapes:
    """What a rank samples at a time, at its longest: sequences, tokens of each, bytes of the keys
    and values of all, entries of the vocabulary, bytes of the base weights.

    on_cpu: device and host are one memory. layer: bytes that a pass without gradients holds of a
    token, those of one layer.
    """

    config: Config
    sequences: int
    tokens: int
    cache: int
    vocabulary: int
    weights: int
    on_cpu: bool
    layer: int = 0


class SamplerBytes(NamedTuple):
    """What a sampler takes of a rank's device: while it samples, when the trainer's activations are
    gone, and all the time; key: the setting that lowers the latter; while_sampling: the former."""

    sampling: int = 0
    always: int = 0
    key: str = ""
    while_sampling: str = ""


def model_context(model: nn.Module) -> int:
    """The longest sequence, in tokens, that the model's positions are made for."""
    return context_of(cast(PretrainedConfig, model.config))


def check_length(
    prompt: int, max_new_tokens: int, context: int, key: str = "rollout.max_new_tokens"
) -> None:
    """Raises `ConfigError` if prompt and response together may exceed the context (tokens).

    key: the setting that max_new_tokens comes from.
    """
    if prompt + max_new_tokens > context:
        raise ConfigError(
            f"{key}: {max_new_tokens} after a prompt of {prompt} tokens exceed a "
            f"context of {context}; lower it, or rollout.max_prompt_tokens to leave out the prompt"
        )


def check_room(architecture: PretrainedConfig, prompt: int, max_new_tokens: int) -> None:
    """Whether prompts and responses of so many tokens can be passed through such a model, each as
    if it were alone. Raises `ConfigError`."""
    check_positions(architecture, prompt + max_new_tokens)
    check_length(prompt, max_new_tokens, context_of(architecture))


def check_prompts(prompts: list[list[int]], max_new_tokens: int, context: int) -> None:
    """Refuse prompts that no response can be sampled to.

    Raises:
        ValueError: if a prompt is empty, or with max_new_tokens longer than the context.
    """
    check_length(max(map(len, prompts), default=0), max_new_tokens, context)
    if [] in prompts:
        raise ValueError(f"prompt {prompts.index([])} is empty: there is nothing to continue")


def pad_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that fills the rows of a batch; `load_tokenizer` sees to it that there is one."""
    return cast(int, tokenizer.pad_token_id)


def end_tokens(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens that end a response: the tokenizer's own, and those of the generation config
    (chat models end a turn and a text with different ones)."""
    configured: Any = getattr(model.generation_config, "eos_token_id", None)
    configured = configured if isinstance(configured, list) else [configured]
    return tuple(sorted({cast(int | None, tokenizer.eos_token_id), *configured} - {None}))


def request_settings(
    draws: list[Draw], samples: int, temperature: float, truncation: Truncation
) -> list[dict[str, float]]:
    """What vLLM is asked for each prompt."""
    fixed: dict[str, float] = {"n": samples, "temperature": temperature, **truncation._asdict()}
    return [fixed | {"seed": request_seed(draw)} for draw in draws]


def request_seed(draw: Draw) -> int:
    """A seed for an engine that draws its own numbers; a prompt's samples take those after it."""
    return int(generator(draw.seed, Stream.SAMPLING, draw.step, draw.prompt).integers(2**62))


def uniforms(seed: int, step: int, prompt: int, samples: int, tokens: int) -> np.ndarray:
    """(samples, tokens) numbers in [0, 1) that sample one prompt's responses in one step.

    They depend on nothing else, so a run samples the same responses on any number of ranks, in
    any batches, and after resuming, without the state of a generator being kept.
    """
    return generator(seed, Stream.SAMPLING, step, prompt).random((samples, tokens))
