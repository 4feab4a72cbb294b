"""What stands before vLLM's server: trying to get in, and adapters that arrive."""

import asyncio
import hashlib
import json
import stat

import pytest
import torch
from safetensors.torch import load_file, save

from capo_ds.rollout.server_door import CONFIGURATION, KEY, Door

ADAPTER = save({"a": torch.arange(6.0)}, {CONFIGURATION: '{"r": 2}'})
RIGHT = [(b"authorization", b"Bearer right")]


async def vllm(scope, receive, send):
    """Answers whoever is let in."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b'{"answered": "by vLLM"}'})


@pytest.fixture
def door(monkeypatch, tmp_path) -> Door:
    monkeypatch.setenv(KEY, "right")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return Door(vllm)


def ask(door, method, path, headers=RIGHT, body=(b"",), breaks=False, kind="http"):
    """Status and answer."""
    parts = [
        {"type": "http.request", "body": part, "more_body": number < len(body) or breaks}
        for number, part in enumerate(body, 1)
    ]
    arriving = iter([*parts, {"type": "http.disconnect"}])
    sent = []

    async def receive():
        return next(arriving)

    async def send(message):
        sent.append(message)

    scope = {"type": kind, "method": method, "path": path, "headers": headers}
    asyncio.run(door(scope, receive, send))
    if kind == "websocket":
        return sent[0]["type"], None
    return sent[0]["status"], json.loads(sent[1]["body"])


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"")],
        [(b"authorization", b"Bearer wrong")],
        [(b"authorization", b"right")],
        [(b"authorization", b"Bearer right ")],
        [(b"authorization", "Bearer r\u00efght".encode("latin-1"))],
        [(b"x-api-key", b"right")],
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/load_lora_adapter"),
        ("POST", "/invocations"),
        ("POST", "/tokenize"),
        ("GET", "/metrics"),
        ("GET", "/docs"),
        ("POST", "/health"),
        ("GET", "/health/../v1/models"),
        ("GET", "//health"),
        ("OPTIONS", "/v1/models"),
        ("PUT", "/capo/adapters/a"),
        ("DELETE", "/capo/adapters/a"),
    ],
)
def test_nothing_opens_without_the_key(door, headers, method, path):
    assert ask(door, method, path, headers) == (401, {"error": "Unauthorized"})


def test_with_the_key_and_health_without(door):
    assert ask(door, "POST", "/v1/completions") == (200, {"answered": "by vLLM"})
    assert ask(door, "GET", "/health", []) == (200, {"answered": "by vLLM"})
    assert ask(door, "GET", "/v1/realtime", kind="websocket") == ("websocket.close", None)


def test_an_adapter_arrives_in_pieces_and_goes(door):
    status, told = ask(door, "PUT", "/capo/adapters/run-1", body=(ADAPTER[:50], ADAPTER[50:], b""))
    assert status == 200 and told["digest"] == hashlib.sha256(ADAPTER).hexdigest()
    folder = door.folder / "run-1"
    assert told["path"] == str(folder) and stat.S_IMODE(door.folder.stat().st_mode) == 0o700
    assert torch.equal(load_file(folder / "adapter_model.safetensors")["a"], torch.arange(6.0))
    assert json.loads((folder / "adapter_config.json").read_text()) == {"r": 2}
    other = save({"a": torch.zeros(1)}, {CONFIGURATION: "{}"})
    assert ask(door, "PUT", "/capo/adapters/run-1", body=(other,))[0] == 200
    assert load_file(folder / "adapter_model.safetensors")["a"].shape == (1,)
    assert ask(door, "DELETE", "/capo/adapters/run-1") == (200, {})
    assert list(door.folder.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["", "..", ".hidden", "a/b", "../../x", "a\x00b", "a b", "x" * 201, "%2e%2e"]
)
def test_names_stay_in_the_folder(door, name):
    for method in ("PUT", "DELETE"):
        assert ask(door, method, f"/capo/adapters/{name}", body=(ADAPTER,))[0] == 400
    assert list(door.folder.iterdir()) == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"short",
        b"\xff" * 64,
        save({"a": torch.zeros(1)}),
        save({"a": torch.zeros(1)}, {"x": "y"}),
        ADAPTER[:20],
    ],
)
def test_what_is_no_adapter_leaves_nothing(door, body):
    status, told = ask(door, "PUT", "/capo/adapters/a", body=(body,))
    assert status == 400 and told["error"].startswith("no adapter: ")
    assert list(door.folder.iterdir()) == []


def test_a_broken_connection_leaves_the_old_one(door):
    assert ask(door, "PUT", "/capo/adapters/a", body=(ADAPTER,))[0] == 200
    assert ask(door, "PUT", "/capo/adapters/a", body=(ADAPTER[:30],), breaks=True)[0] == 400
    assert [path.name for path in door.folder.iterdir()] == ["a"]
    assert (door.folder / "a" / "adapter_model.safetensors").read_bytes() == ADAPTER
