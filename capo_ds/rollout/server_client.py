"""One vLLM server that launchers/vllm_server.py started, and what it is asked."""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from capo_ds.config import ConfigError
from capo_ds.rollout.server_door import ADAPTERS
from capo_ds.rollout.server_key import VARIABLE, key_file

CONNECT = 10.0  # seconds; a machine that is gone does not refuse, it is silent
# So a connection to one ends after half a minute and three times 10 s.
KEEPALIVE = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
Headers = dict[str, str]


class ServerFailed(RuntimeError):
    """The server answers that it cannot (5xx; its engine is dead, for instance), or knows nothing
    of what it had (404: another one has taken its place)."""


LOST = (OSError, http.client.HTTPException, ServerFailed)  # it, or the way to it, is gone


class Server:
    """url: http://HOST:PORT, perhaps with a path; timeout: seconds that an answer may take.

    Every method raises:
        OSError, HTTPException, ServerFailed: `LOST`; a TimeoutError among them.
        ConfigError: it refuses the key.
        RuntimeError: it refuses what it is asked, with its words.
    """

    def __init__(self, url: str, key: str | None, timeout: float):
        self.url, self.key, self.timeout = url, key, timeout

    def longest(self) -> int:
        """Tokens of a sequence at most."""
        (base,) = (m for m in self._models() if m.get("parent") is None)
        return base["max_model_len"]

    def adapters(self) -> set[str]:
        """The names of those that it has loaded."""
        return {model["id"] for model in self._models() if model.get("parent") is not None}

    def load(self, name: str, adapter: bytes) -> None:
        """Hand over an adapter (a safetensors file, see server_door) under a new name."""
        kind = {"Content-Type": "application/octet-stream"}
        arrived = self._answer("PUT", f"{ADAPTERS}{name}", adapter, kind)
        if arrived["digest"] != hashlib.sha256(adapter).hexdigest():
            raise ServerFailed(f"{self.url} received another adapter than was sent as {name}")
        self.ask("/v1/load_lora_adapter", {"lora_name": name, "lora_path": arrived["path"]})

    def unload(self, name: str) -> None:
        self.ask("/v1/unload_lora_adapter", {"lora_name": name})
        self._answer("DELETE", f"{ADAPTERS}{name}")

    def complete(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request for completions, which is of the model that it names."""
        answer = self.ask("/v1/completions", request)
        if answer["model"] != request["model"]:
            raise RuntimeError(
                f"{self.url} was asked for {request['model']} and answers by {answer['model']}"
            )
        return answer

    def ask(self, path: str, body: dict[str, Any]) -> Any:
        """The answer to a POST."""
        return self._answer(
            "POST", path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )

    def _models(self) -> list[dict[str, Any]]:
        return self._answer("GET", "/v1/models")["data"]

    def _answer(
        self, method: str, path: str, body: bytes | None = None, headers: Headers | None = None
    ) -> Any:
        own = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        connection = self._connect()
        try:
            connection.request(method, urlsplit(self.url).path + path, body, (headers or {}) | own)
            answer = connection.getresponse()
            text = answer.read()
        except TimeoutError as error:
            raise TimeoutError(
                f"{self.url}{path} has not answered within rollout.timeout = {self.timeout:g} s"
            ) from error
        finally:
            connection.close()
        if answer.status != HTTPStatus.OK:
            self._refuse(path, answer.status, text.decode(errors="replace"))
        return json.loads(text) if text[:1] in (b"{", b"[") else text.decode()

    def _connect(self) -> http.client.HTTPConnection:
        address = urlsplit(self.url)
        secure = address.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        assert address.hostname
        connection = kind(address.hostname, address.port, timeout=min(CONNECT, self.timeout))
        connection.connect()
        connection.sock.settimeout(self.timeout)
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE:
            if hasattr(socket, name):  # of Linux
                connection.sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        return connection

    def _refuse(self, path: str, status: int, told: str) -> None:
        if status == HTTPStatus.UNAUTHORIZED:
            refused = "this key" if self.key else "a run without a key"
            raise ConfigError(
                f"rollout.server_url: {self.url} refuses {refused}; give {VARIABLE} or "
                f"{key_file()} the one of the server's launcher"
            )
        failed = status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.NOT_FOUND
        kind = ServerFailed if failed else RuntimeError
        raise kind(f"{self.url}{path} answers {status}: {told}")
