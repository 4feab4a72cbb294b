"""What launchers/vllm_server.py puts before vLLM's server (`--middleware`): nobody gets in without
the key, and adapters come in over HTTP.

PUT /capo/adapters/NAME takes an adapter as one safetensors file whose metadata holds its
configuration, keeps it in a folder that only this user can read, and answers the folder and the
SHA-256 of what has arrived; vLLM is then asked to load that folder. DELETE removes it.
(The standard library alone, and runs in the server's environment.)
"""

from __future__ import annotations

import asyncio
import atexit
import hashlib
import hmac
import json
import os
import re
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

ADAPTERS = "/capo/adapters/"
CONFIGURATION = "adapter_config"  # in the file's metadata
KEY = "VLLM_API_KEY"  # of the environment: where the launcher puts it, and where vLLM looks
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
OPEN = "/health"  # without a key: says only that there is a server

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class Door:
    """An ASGI application around vLLM's."""

    def __init__(self, app: App):
        self.app = app
        self.key = os.environ[KEY]
        self.folder = Path(tempfile.mkdtemp(prefix="capo_adapters_"))
        atexit.register(shutil.rmtree, self.folder, ignore_errors=True)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # a websocket: nothing of ours, and it would pass the key
            return await send({"type": "websocket.close", "code": 1008})
        path, method = scope["path"], scope["method"]
        if not (path == OPEN and method == "GET") and not self._knows_key(scope):
            return await _answer(send, HTTPStatus.UNAUTHORIZED, {"error": "Unauthorized"})
        if not path.startswith(ADAPTERS):
            return await self.app(scope, receive, send)
        name = path.removeprefix(ADAPTERS)
        if not NAME.fullmatch(name):
            return await _answer(send, HTTPStatus.BAD_REQUEST, {"error": f"no name: {name!r}"})
        if method == "PUT":
            return await _answer(send, *await self._take_in(name, receive))
        if method == "DELETE":
            await asyncio.to_thread(shutil.rmtree, self.folder / name, ignore_errors=True)
            return await _answer(send, HTTPStatus.OK, {})
        return await _answer(send, HTTPStatus.METHOD_NOT_ALLOWED, {"error": method})

    def _knows_key(self, scope: Message) -> bool:
        given = dict(scope["headers"]).get(b"authorization", b"")
        return hmac.compare_digest(given, f"Bearer {self.key}".encode())

    async def _take_in(self, name: str, receive: Receive) -> tuple[HTTPStatus, Message]:
        """The adapter in the request's body, on the disk: whole, or not at all."""
        arriving = Path(tempfile.mkdtemp(dir=self.folder, prefix="."))
        try:
            weights = arriving / "adapter_model.safetensors"
            digest = await _receive(receive, weights)
            (arriving / "adapter_config.json").write_text(_configuration(weights))
            shutil.rmtree(self.folder / name, ignore_errors=True)
            arriving.rename(self.folder / name)
        except (ValueError, KeyError, ConnectionError) as error:
            return HTTPStatus.BAD_REQUEST, {"error": f"no adapter: {error}"}
        finally:
            shutil.rmtree(arriving, ignore_errors=True)
        return HTTPStatus.OK, {"path": str(self.folder / name), "digest": digest}


async def _receive(receive: Receive, path: Path) -> str:
    """Write a request's body; its SHA-256."""
    digest, more = hashlib.sha256(), True
    with open(path, "wb") as file:
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionError("the connection broke")
            part, more = message.get("body", b""), message.get("more_body", False)
            digest.update(part)
            file.write(part)
    return digest.hexdigest()


def _configuration(weights: Path) -> str:
    """What the metadata of a safetensors file says of the adapter."""
    with open(weights, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > weights.stat().st_size:
            raise ValueError("not a safetensors file")
        return json.loads(file.read(length))["__metadata__"][CONFIGURATION]


async def _answer(send: Send, status: HTTPStatus, body: Message) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": int(status), "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})
