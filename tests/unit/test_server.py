"""What the sampler on a server says when the server is missing, slow, or unwilling."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from capo_ds.commands.vllm_server import command
from capo_ds.config import ConfigError, parse_config
from capo_ds.models import load_policy
from capo_ds.rollout.engine import engine_settings
from capo_ds.rollout.server import ServerSampler
from capo_ds.rollout.server_client import ServerFailed
from tests.conftest import greedy

MODELS = {"data": [{"id": "base", "parent": None, "max_model_len": 100}]}


class Answering(BaseHTTPRequestHandler):
    """In JSON, without a word on the terminal."""

    def answer(self, status: int, body: dict):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_):
        pass


class Unwilling(Answering):
    """Knows its model, loads no adapter, and completes nothing while a test waits for it."""

    waited = threading.Event()

    def do_GET(self):
        self.answer(200, MODELS)

    def do_PUT(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(200, {"path": "there", "digest": hashlib.sha256(body).hexdigest()})

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/v1/completions":
            self.waited.wait(60)
        self.answer(400, {"error": {"message": "rank 64 is greater than max_lora_rank 16"}})


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a server in this process."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


@pytest.fixture
def url() -> Iterator[str]:
    Unwilling.waited.clear()
    with serving(Unwilling) as address:
        yield f"{address}/"
        Unwilling.waited.set()


def sampler(
    model: str, tmp_path, url: str, context: int = 100, timeout: float = 5
) -> ServerSampler:
    config = parse_config(
        {
            "model": {"path": model, "lora_rank": 2, "lora_alpha": 4},
            "rollout": {"server_url": url, "timeout": timeout},
            "train": {"output_dir": str(tmp_path)},
        }
    )
    policy = load_policy(config.model, seed=0)
    return ServerSampler(policy, [2], 0, context, config, run="test", loads=True)


def test_no_server(random_model, tmp_path):
    with pytest.raises(ConfigError, match=r"rollout\.server_url: no .*9:.*launchers/vllm_server"):
        sampler(random_model, tmp_path, "http://127.0.0.1:9")


def test_a_short_context(random_model, tmp_path, url):
    with pytest.raises(ConfigError, match="takes 100 tokens a sequence, and this run needs 101"):
        sampler(random_model, tmp_path, url, context=101)


def test_the_servers_own_words(random_model, tmp_path, url):
    with pytest.raises(RuntimeError, match=r"load_lora_adapter answers 400: .*max_lora_rank 16"):
        sampler(random_model, tmp_path, url).sync()


def test_a_slow_server(random_model, tmp_path, url):
    slow = sampler(random_model, tmp_path, url)
    slow.servers.every[0].timeout = 0.2
    with pytest.raises(
        ServerFailed, match=r"no other is left: .*not answered within rollout\.timeout = 0\.2 s"
    ):
        greedy(slow, [[5, 6]])


def test_an_engine_reads_the_revision_that_is_trained(random_model):
    """Its weights, its tokenizer and its code; without one, what is newest."""
    pinned = parse_config(
        {"model": {"path": random_model, "revision": "v1.2", "dtype": "bfloat16"}}
    )
    words = command(pinned)
    for name in ("revision", "tokenizer-revision", "code-revision"):
        assert words[words.index(f"--{name}") + 1] == "v1.2"
    newest = parse_config({"model": {"path": random_model, "dtype": "bfloat16"}})
    assert not [name for name in engine_settings(newest, 100) if "revision" in name]
