"""Sampling from vLLM servers elsewhere, through their OpenAI-compatible API."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from peft import PeftModel

from capo_ds.config import Config, ConfigError
from capo_ds.rollout.adapter import packed_adapter
from capo_ds.rollout.base import (
    WHOLE,
    Asked,
    Draw,
    EarlySampler,
    Sampled,
    SamplerRun,
    Truncation,
    check_prompts,
    request_settings,
)
from capo_ds.rollout.engine import context_length
from capo_ds.rollout.rollout import Rollout, assemble
from capo_ds.rollout.server_client import LOST, Server, ServerFailed
from capo_ds.rollout.server_key import server_key
from capo_ds.rollout.servers import Servers
from capo_ds.rollout.waiting import in_background


def server(run: SamplerRun) -> ServerSampler:
    """The sampler of a run. (In a dry run too: the server is asked what it is, and no more.)"""
    context = context_length(run.config, run.policy.config)
    arguments = run.policy, run.ends, run.pad, context, run.config
    return ServerSampler(*arguments, run=run.name, loads=run.loads)


class ServerSampler(EarlySampler):
    """A `Sampler` on servers that launchers/vllm_server.py started.

    Every sync loads the adapter under a new name: a name that a server knows, it may answer with
    the old weights or with cached values of theirs. A server that is lost is left out, with a
    warning, until a later sync finds it again; what it was asked, the others are asked, with the
    same seeds. A prompt's responses are sampled by one server.

    ends: the tokens that end a response. context: the longest prompt and response together.
    run: a name that no other run has used; loads: whether this rank makes the servers load the
    adapter for all, which the other ranks must wait for.
    Raises:
        ConfigError: if a server does not answer, or does not fit.
        RuntimeError: from every method, once no server is left (after `rollout.timeout`, for
            instance), and on a server's refusal, with its text.
    """

    collective = False
    shares_policy = False
    names_weights = False

    def __init__(
        self,
        policy: PeftModel,
        ends: Sequence[int],
        pad: int,
        context: int,
        config: Config,
        run: str,
        loads: bool,
    ):
        self.policy, self.ends, self.pad, self.context = policy, list(ends), pad, context
        self.max_new_tokens, self.stop = config.rollout.max_new_tokens, config.prompt.stop
        self.run, self.loads, self.ahead = run, loads, config.rollout.ahead
        every = [Server(url, _key(), config.rollout.timeout) for url in config.rollout.server_urls]
        for each in every:
            _check(each, context)
        self.servers = Servers(every)
        self._syncs, self._found = 0, True

    def awake(self) -> AbstractContextManager[None]:
        return nullcontext()

    def sync(self) -> None:
        self._syncs, self._found = self._syncs + 1, False
        self.servers.take_back()
        if self.loads:
            adapter = packed_adapter(self.policy)
            self.servers.each("the weight sync", partial(self._load, adapter))

    def _load(self, adapter: bytes, server: Server) -> None:
        """And unload those that nothing under way is sampled with any more."""
        server.load(self._name, adapter)
        kept = {self._name_of(self._syncs - before) for before in range(self.ahead + 1)}
        for name in sorted(server.adapters() - kept):
            if name.startswith(self._names):
                server.unload(name)

    def sample_each(
        self, prompts: list[list[int]], draws: list[Draw], temperature: float, max_new_tokens: int
    ) -> dict[str, Rollout]:
        settings = request_settings(draws, 1, temperature, WHOLE)
        self._find()

        def ask(server: Server) -> Rollout:
            requests = self._requests(prompts, settings, max_new_tokens)
            return self._assembled(requests, Servers([server]).answers(requests))

        return self.servers.each("the probe", ask)

    def ask(
        self,
        prompts: list[list[int]],
        draws: list[Draw],
        samples: int,
        temperature: float,
        max_new_tokens: int | None = None,
        truncation: Truncation = WHOLE,
    ) -> Asked:
        settings, limit = request_settings(draws, samples, temperature, truncation), max_new_tokens
        self._find()
        requests = self._requests(prompts, settings, limit or self.max_new_tokens)
        began, among = time.perf_counter(), list(self.servers.living)  # they have the adapter

        def answers() -> tuple[list[dict[str, Any]], float]:
            return self.servers.answers(requests, among), time.perf_counter() - began

        asked = in_background(answers)

        def sampled() -> Sampled:
            told, seconds = asked.result()
            return Sampled(self._assembled(requests, told), seconds)

        return sampled

    def _find(self) -> None:
        """Who has the adapter: rank 0 may have left out a server that this rank can reach."""
        if self._found or not self._syncs:
            return
        self.servers.each("the weight sync", partial(_confirm, self._name))
        self._found = True

    @property
    def _names(self) -> str:
        return f"capo-{self.run}-"

    @property
    def _name(self) -> str:
        return self._name_of(self._syncs)

    def _name_of(self, sync: int) -> str:
        return f"{self._names}{sync:06d}"

    def _requests(
        self, prompts: list[list[int]], settings: list[dict[str, Any]], limit: int
    ) -> list[dict[str, Any]]:
        """One a prompt: the prompts of a request would share a seed."""
        check_prompts(prompts, limit, self.context)
        fixed = {
            "model": self._name,
            "max_tokens": limit,
            "stop_token_ids": self.ends,
            "stop": self.stop,
            "skip_special_tokens": False,  # a stop string may hold some
            "spaces_between_special_tokens": False,
            "ignore_eos": True,  # the line above names all
            "logprobs": 0,  # of the sampled token alone
            "return_token_ids": True,
        }
        pairs = zip(prompts, settings, strict=True)
        return [fixed | {"prompt": prompt} | own for prompt, own in pairs]

    def _assembled(self, requests: list[dict[str, Any]], answers: list[dict[str, Any]]) -> Rollout:
        choices = [choice for told in answers for choice in _in_order(told)]
        if broken := {choice["finish_reason"] for choice in choices} - {"stop", "length"}:
            raise RuntimeError(f"the vLLM server ended a response with {broken}")
        return assemble(
            [request["prompt"] for request in requests for _ in range(request["n"])],
            [choice["token_ids"] for choice in choices],
            [choice["logprobs"]["token_logprobs"] for choice in choices],
            [choice["finish_reason"] == "length" for choice in choices],
            self.pad,
            next(self.policy.parameters()).device,
        )


def _check(server: Server, context: int) -> None:
    """Raises `ConfigError` unless it answers and takes sequences of `context` tokens."""
    remedy = "start one with launchers/vllm_server.py and the same config"
    try:
        longest = server.longest()
    except ConfigError:  # refused: a server is there
        raise
    except (*LOST, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"rollout.server_url: no vLLM server answers at {server.url}: {error}; {remedy}"
        ) from error
    if longest < context:
        raise ConfigError(
            f"rollout.server_url: {server.url} takes {longest} tokens a sequence, and this run "
            f"needs {context}; {remedy}"
        )


def _confirm(name: str, server: Server) -> None:
    if name not in server.adapters():
        raise ServerFailed(f"it has no {name}")


def _key() -> str | None:
    try:
        return server_key()
    except PermissionError as error:
        raise ConfigError(f"rollout.server_url: its key is no secret: {error}") from error


def _in_order(answer: dict[str, Any]) -> list[dict[str, Any]]:
    return sorted(answer["choices"], key=lambda choice: choice["index"])
