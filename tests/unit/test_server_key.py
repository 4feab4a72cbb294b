"""Who may talk to the server: the key's places, and what a request without it meets."""

import stat
from collections.abc import Iterator

import pytest

from capo_ds.commands import vllm_server
from capo_ds.config import Config, ConfigError
from capo_ds.rollout.server_key import VARIABLE, key_file, made_key, server_key
from tests.unit.test_server import MODELS, Answering, sampler, serving


class Guarded(Answering):
    """Answers as vLLM does with VLLM_API_KEY."""

    def do_GET(self):
        right = self.headers["Authorization"] == "Bearer right"
        self.answer(*((200, MODELS) if right else (401, {"error": "Unauthorized"})))


@pytest.fixture
def url() -> Iterator[str]:
    with serving(Guarded) as address:
        yield address


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(VARIABLE, raising=False)


def test_a_key_is_made_once_and_for_its_user_alone():
    assert server_key() is None
    key = made_key()
    assert len(key) >= 32 and made_key() == server_key() == key
    assert stat.S_IMODE(key_file().stat().st_mode) == 0o600
    key_file().chmod(0o644)
    with pytest.raises(PermissionError, match="others can read"):
        server_key()


def test_the_variable_comes_first(monkeypatch):
    made_key()
    monkeypatch.setenv(VARIABLE, "mine")
    assert server_key() == made_key() == "mine"


@pytest.mark.parametrize("key", [None, "wrong"])
def test_without_the_key_nobody_gets_in(random_model, tmp_path, url, monkeypatch, key):
    if key:
        monkeypatch.setenv(VARIABLE, key)
    with pytest.raises(
        ConfigError, match=r"^rollout\.server_url: http\S+ refuses .*CAPO_SERVER_KEY"
    ):
        sampler(random_model, tmp_path, url)


def test_with_the_key(random_model, tmp_path, url, monkeypatch):
    monkeypatch.setenv(VARIABLE, "right")
    assert sampler(random_model, tmp_path, url).context == 100


def test_the_launcher_shows_the_key_to_the_server_alone(tmp_path, monkeypatch, capsys):
    started = {}
    monkeypatch.setattr(vllm_server, "command", lambda *_: ["vllm", "serve"])
    monkeypatch.setattr(vllm_server, "load_config", lambda *_: Config())
    monkeypatch.setattr("sys.argv", ["vllm_server", "--config", "x.yaml"])
    for name in ("VLLM_API_KEY", "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "PYTHONPATH"):
        monkeypatch.setenv(name, "")

    def execv(program, words):
        import os

        started.update(key=os.environ["VLLM_API_KEY"], words=words)

    monkeypatch.setattr("os.execv", execv)
    vllm_server.main()
    told = capsys.readouterr().out
    assert started["key"] == server_key()
    assert started["key"] not in told + " ".join(started["words"]) and str(key_file()) in told
