"""The process of the sampler `process`: the policy's own copy, sampling what it is asked for.

Started by `capo_ds.rollout.process`. Requests come in order over one socket and are answered in
order; a thread takes them in, so that whoever asks never waits for the sampling before, and so
that the process ends as soon as its parent does.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from hashlib import blake2b
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Thread
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.utils import logging

from capo_ds.config import Config, ConfigError
from capo_ds.models import load_policy, load_tokenizer
from capo_ds.rollout.hf import HuggingFaceSampler, stop_at

PARENT_IS_GONE = 0  # exit status


class Start(NamedTuple):
    """What the process samples with, and on. The first message.

    ends: the tokens that end a response. pad: the token that fills rows.
    """

    config: Config
    ends: Sequence[int]
    pad: int
    device: torch.device
    threads: int


class Weights(NamedTuple):
    """The LoRA factors by name, to sample with from now on. Has no answer."""

    factors: dict[str, Tensor]


class Request(NamedTuple):
    """Arguments of `Sampler.sample`."""

    arguments: dict[str, Any]


class Answer(NamedTuple):
    """To a `Start`, where it is empty, or to a `Request`.

    rollout: its tensors, on the CPU. digest: of the factors that it was sampled with.
    seconds: that the sampling took. error: kind and text.
    """

    rollout: dict[str, Tensor] | None = None
    digest: str = ""
    seconds: float = 0.0
    error: tuple[str, str] | None = None


def factors_of(policy: nn.Module) -> dict[str, Tensor]:
    """The trainable parameters by name."""
    return {name: p.detach() for name, p in policy.named_parameters() if p.requires_grad}


def digest_of(factors: dict[str, Tensor]) -> str:
    """Of names and bits."""
    digest = blake2b(digest_size=16)
    for name, factor in sorted(factors.items()):
        digest.update(name.encode())
        digest.update(factor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


class Sampling:
    """The policy and its sampler in this process."""

    def __init__(self, start: Start):
        logging.disable_progress_bar()  # the parent has told of the weights
        torch.set_num_threads(start.threads)
        if start.device.type == "cuda":
            torch.cuda.set_device(start.device)
        config = start.config
        policy = load_policy(config.model, config.train.seed, start.device)
        self.factors = factors_of(policy)
        limits, stop = (config.rollout.max_new_tokens, config.rollout.batch_size), None
        if config.prompt.stop:
            stop = stop_at(load_tokenizer(config.model), config.prompt.stop)
        self.sampler = HuggingFaceSampler(policy, start.ends, start.pad, *limits, stop)

    def take(self, weights: Weights) -> None:
        """Raises `RuntimeError` if they are not those of this policy."""
        if weights.factors.keys() != self.factors.keys():
            raise RuntimeError("the factors that came are not those of the sampler's policy")
        for name, factor in weights.factors.items():
            self.factors[name].copy_(factor)

    def answer(self, request: Request) -> Answer:
        began = time.perf_counter()
        rollout = self.sampler.sample(**request.arguments)
        tensors = {name: value.cpu() for name, value in vars(rollout).items()}
        seconds = time.perf_counter() - began
        return Answer(tensors, digest_of(self.factors), seconds)


def serve(connection: Connection) -> None:
    """Answer until the parent is gone. What fails is told, and the next request is answered; where
    weights could not be taken, every request after it fails in the same words."""
    messages: SimpleQueue[Any] = SimpleQueue()
    Thread(target=_take_in, args=(connection, messages), daemon=True).start()
    try:
        sampling = Sampling(messages.get())
    except Exception as error:
        _tell(connection, _failed(error))
        return
    _tell(connection, Answer())
    refused: Answer | None = None
    while True:
        message = messages.get()
        try:
            if isinstance(message, Weights):
                sampling.take(message)
            else:
                _tell(connection, refused or sampling.answer(message))
        except Exception as error:
            failed = _failed(error)
            if isinstance(message, Weights):
                refused = failed
            else:
                _tell(connection, failed)


def _take_in(connection: Connection, messages: SimpleQueue[Any]) -> None:
    while True:
        try:
            messages.put(pickle.loads(connection.recv_bytes()))
        except (EOFError, OSError):
            os._exit(PARENT_IS_GONE)


def _tell(connection: Connection, answer: Answer) -> None:
    try:
        connection.send_bytes(pickle.dumps(answer))
    except (BrokenPipeError, ConnectionResetError):
        os._exit(PARENT_IS_GONE)


def _failed(error: Exception) -> Answer:
    if not isinstance(error, ConfigError):
        traceback.print_exc()
    return Answer(error=(type(error).__name__, str(error)))


def main() -> None:
    """Serve the socket whose descriptor is the argument."""
    # Of the terminal and the launcher they are the parent's, with which this process ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    serve(Connection(int(sys.argv[1])))
