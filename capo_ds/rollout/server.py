"""Sampling from a vLLM server elsewhere, through its OpenAI-compatible API."""

from __future__ import annotations

import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

from peft import PeftModel

from capo_ds.config import Config, ConfigError
from capo_ds.rollout.base import (
    WHOLE,
    Draw,
    Rollout,
    SamplerRun,
    Truncation,
    assemble,
    check_prompts,
    request_settings,
)
from capo_ds.rollout.engine import context_length
from capo_ds.rollout.server_key import VARIABLE, key_file, server_key

ADAPTERS = "server_adapters"  # in the run's folder, which the server must see under the same path
CONNECTIONS = 64  # at a time, of one rank


def server(run: SamplerRun) -> ServerSampler:
    """The sampler of a run. (In a dry run too: the server is asked what it is, and no more.)"""
    context = context_length(run.config, run.policy.config)
    arguments = run.policy, run.ends, run.pad, context, run.config
    return ServerSampler(*arguments, run=run.name, loads=run.loads)


class ServerSampler:
    """A `Sampler` on a server that launchers/vllm_server.py started.

    Every sync loads the adapter under a new name, from a new folder: a name that the server
    knows, it may answer with the old weights or with cached values of theirs.

    ends: the tokens that end a response. context: the longest prompt and response together.
    run: a name that no other run has used; loads: whether this rank makes the server load the
    adapter for all, which the other ranks must wait for.
    Raises:
        ConfigError: if no fitting server answers.
        TimeoutError, RuntimeError: from every method, after `rollout.timeout` and on an error of
            the server, with its text.
    """

    collective = False
    shares_policy = False

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
        self.url, self.timeout = config.rollout.server_url.rstrip("/"), config.rollout.timeout
        self.run, self.loads = run, loads
        self._folder = Path(config.train.output_dir).resolve() / ADAPTERS
        self._syncs = 0
        self._key = _key()
        self._check_server()

    def awake(self) -> AbstractContextManager[None]:
        return nullcontext()

    def sync(self) -> None:
        old, self._syncs = self._name, self._syncs + 1
        if not self.loads:
            return
        self.policy.save_pretrained(str(self._folder / self._name), selected_adapters=["default"])
        path = str(self._folder / self._name)
        self._ask("/v1/load_lora_adapter", {"lora_name": self._name, "lora_path": path})
        if self._syncs > 1:
            self._ask("/v1/unload_lora_adapter", {"lora_name": old})
            shutil.rmtree(self._folder / old)

    def sample(
        self,
        prompts: list[list[int]],
        draws: list[Draw],
        samples: int,
        temperature: float,
        max_new_tokens: int | None = None,
        truncation: Truncation = WHOLE,
    ) -> Rollout:
        settings = request_settings(draws, samples, temperature, truncation)
        return self._generate(prompts, settings, max_new_tokens or self.max_new_tokens)

    @property
    def _name(self) -> str:
        return f"capo-{self.run}-{self._syncs:06d}"

    def _generate(
        self, prompts: list[list[int]], settings: list[dict[str, Any]], limit: int
    ) -> Rollout:
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
        # One request a prompt: the prompts of a request would share a seed.
        requests = [
            fixed | {"prompt": prompt} | own for prompt, own in zip(prompts, settings, strict=True)
        ]
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            answers = list(pool.map(partial(self._ask, "/v1/completions"), requests))
        choices = [choice for answer in answers for choice in _in_order(answer)]
        if broken := {choice["finish_reason"] for choice in choices} - {"stop", "length"}:
            raise RuntimeError(f"the vLLM server ended a response with {broken}")
        return assemble(
            [p for p, own in zip(prompts, settings, strict=True) for _ in range(own.get("n", 1))],
            [choice["token_ids"] for choice in choices],
            [choice["logprobs"]["token_logprobs"] for choice in choices],
            [choice["finish_reason"] == "length" for choice in choices],
            self.pad,
            next(self.policy.parameters()).device,
        )

    def _check_server(self) -> None:
        remedy = "start one with launchers/vllm_server.py and the same config"
        try:
            (base,) = (m for m in self._ask("/v1/models")["data"] if m.get("parent") is None)
        except ConfigError:  # refused: a server is there
            raise
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"rollout.server_url: no vLLM server answers at {self.url}: {error}; {remedy}"
            ) from error
        if base["max_model_len"] < self.context:
            raise ConfigError(
                f"rollout.server_url: {self.url} takes {base['max_model_len']} tokens a sequence, "
                f"and this run needs {self.context}; {remedy}"
            )

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The server's answer to a GET, or with a body to a POST."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data, {"Content-Type": "application/json"}
        )
        if self._key:  # of this server alone: it does not follow a redirect
            request.add_unredirected_header("Authorization", f"Bearer {self._key}")
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                text = response.read()
        except urllib.error.HTTPError as error:
            told = error.read().decode(errors="replace")
            if error.code == HTTPStatus.UNAUTHORIZED:
                refused = "this key" if self._key else "a run without a key"
                raise ConfigError(
                    f"rollout.server_url: {self.url} refuses {refused}; give {VARIABLE} or "
                    f"{key_file()} the one of the server's launcher"
                ) from error
            raise RuntimeError(f"{self.url}{path} answers {error.code}: {told}") from error
        except TimeoutError as error:
            raise TimeoutError(
                f"{self.url}{path} has not answered within rollout.timeout = {self.timeout:g} s"
            ) from error
        return json.loads(text) if text[:1] in (b"{", b"[") else text.decode()


def _key() -> str | None:
    try:
        return server_key()
    except PermissionError as error:
        raise ConfigError(f"rollout.server_url: its key is no secret: {error}") from error


def _in_order(answer: dict[str, Any]) -> list[dict[str, Any]]:
    return sorted(answer["choices"], key=lambda choice: choice["index"])
