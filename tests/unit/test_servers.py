"""Several servers for one sampler, with real processes: what is sampled does not depend on them."""

import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch

from capo_ds.config import ConfigError, parse_config
from capo_ds.distributed.launch import free_port
from capo_ds.models import load_policy, token_log_probs
from capo_ds.rollout.base import Asked, Draw
from capo_ds.rollout.probe import Probe, SamplerMismatch
from capo_ds.rollout.rollout import Rollout
from capo_ds.rollout.server import ServerSampler
from capo_ds.rollout.server_client import Server, ServerFailed

SCRIPT = Path(__file__).parents[1] / "stand_in_server.py"
PROMPTS = [[5, 6, number] for number in range(3, 43)]
Start = Callable[..., tuple[str, subprocess.Popen]]


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url}/v1/models", timeout=5)
    except OSError:
        return False
    return True


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a server: its address and its process."""
    processes = []

    def one(seconds: float = 0.0, port: int | None = None) -> tuple[str, subprocess.Popen]:
        port = port or free_port()
        words = [sys.executable, str(SCRIPT), str(port), str(seconds)]
        processes.append(subprocess.Popen(words))
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 30
        while not answers(url):
            assert processes[-1].poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        return url, processes[-1]

    yield one
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture
def sampler(random_model, tmp_path) -> Callable[..., ServerSampler]:
    def make(
        *urls: str, loads: bool = True, timeout: float = 20.0, ahead: int = 0
    ) -> ServerSampler:
        config = parse_config(
            {
                "model": {"path": random_model, "lora_rank": 2, "lora_alpha": 4},
                "rollout": {
                    "sampler": "server",
                    "ahead": ahead,
                    "server_url": list(urls),
                    "timeout": timeout,
                },
                "train": {"output_dir": str(tmp_path)},
            }
        )
        policy = load_policy(config.model, seed=0)
        return ServerSampler(policy, [2], 0, 64, config, run="test", loads=loads)

    return make


def ask(sampler: ServerSampler, step: int = 0) -> Asked:
    draws = [Draw(0, step, number) for number in range(len(PROMPTS))]
    return sampler.ask(PROMPTS, draws, 3, 1.0, 6)


def sample(sampler: ServerSampler, step: int = 0) -> Rollout:
    return ask(sampler, step)().rollout


def same(one: Rollout, other: Rollout) -> bool:
    return torch.equal(one.completion_ids, other.completion_ids) and torch.equal(
        one.log_probs, other.log_probs
    )


def asked(url: str) -> int:
    with urllib.request.urlopen(f"{url}/asked") as answer:
        return json.load(answer)["asked"]


def kill_once_asked(url: str, process: subprocess.Popen) -> None:
    """In the background."""

    def wait() -> None:
        while not asked(url):
            time.sleep(0.01)
        process.kill()

    threading.Thread(target=wait, daemon=True).start()


@pytest.fixture
def expected(start, sampler) -> Rollout:
    """What one server samples."""
    alone = sampler(start()[0])
    alone.sync()
    return sample(alone)


def test_prompts_go_where_there_is_time(start, sampler, expected, monkeypatch):
    monkeypatch.setattr("capo_ds.rollout.servers.CONNECTIONS", 4)
    (fast, _), (slow, _) = start(0.0), start(0.3)
    both = sampler(fast, slow)
    both.sync()
    assert same(sample(both), expected)
    assert asked(fast) + asked(slow) == len(PROMPTS)  # a group stays together
    assert 0 < asked(slow) < asked(fast)


def test_a_server_that_dies_is_left_out_and_taken_back(start, sampler, expected):
    (one, _), (other, process) = start(0.05), start(10.0)
    both = sampler(one, other)
    both.sync()
    kill_once_asked(other, process)
    with pytest.warns(UserWarning, match=rf"server_url: {other} is lost in sampling .* 1 left"):
        assert same(sample(both), expected)
    assert asked(one) == len(PROMPTS)
    with pytest.warns(UserWarning, match=f"{other} is lost in the weight sync"):
        both.sync()
    start(0.0, int(other.rpartition(":")[2]))
    both.sync()
    sample(both, step=1)
    assert asked(other) > 0
    assert Server(other, None, 5.0).adapters() == {"capo-test-000003"}  # older ones are gone


def test_what_is_under_way_keeps_its_adapter(start, sampler, expected):
    """Asked for under the first weights, sampled while the second come, and while a server dies."""
    (one, _), (other, process) = start(0.05), start(10.0)
    both, server = sampler(one, other, ahead=1), Server(one, None, 5.0)
    both.sync()
    under_way = ask(both)
    both.sync()
    after = ask(both, step=1)
    assert server.adapters() == {"capo-test-000001", "capo-test-000002"}
    with pytest.warns(UserWarning, match=f"{other} is lost in sampling"):
        process.kill()
        rollout, seconds = under_way()
    assert same(rollout, expected) and not same(after().rollout, expected)
    assert 0 < seconds < 20 and under_way().seconds == seconds
    start(0.0, int(other.rpartition(":")[2]))
    both.sync()
    assert server.adapters() == {"capo-test-000002", "capo-test-000003"}
    assert Server(other, None, 5.0).adapters() == {"capo-test-000003"}


def test_the_last_one_lost_ends_the_run_with_its_error(start, sampler):
    (one, first), (other, second) = start(), start()
    both = sampler(one, other)
    both.sync()
    first.kill(), second.kill()
    first.wait(), second.wait()
    last = (
        rf"server_url: ({one}|{other}) is lost in the weight sync, and no other is left: .*refused"
    )
    with (
        pytest.warns(UserWarning, match="is lost in the weight sync and left out .* 1 left"),
        pytest.raises(ServerFailed, match=last),
    ):
        sample(both)
    with pytest.raises(ServerFailed, match=last):  # and so does whatever comes before the answer
        both.sample_each(PROMPTS[:2], [Draw(0, 0, 0), Draw(0, 0, 1)], 0.0, 4)


def test_a_server_that_was_started_anew_lacks_the_adapter(start, sampler, expected):
    (one, _), (other, process) = start(), start()
    both = sampler(one, other)
    both.sync()
    sample(both, step=1)
    process.kill()
    process.wait()
    start(0.0, int(other.rpartition(":")[2]))
    with pytest.warns(UserWarning, match="answers 404: .*no capo-test-000001"):
        assert same(sample(both), expected)


def test_another_rank_asks_who_has_the_adapter(start, sampler, expected):
    """Rank 0 could not reach one of them."""
    (one, _), (other, _) = start(), start()
    loads = sampler(one)
    loads.sync()
    rank = sampler(one, other, loads=False)
    rank.sync()
    with pytest.warns(UserWarning, match=f"{other} is lost.*it has no capo-test-000001"):
        assert same(sample(rank), expected)
    assert asked(other) == 0


def test_an_answer_by_another_adapter_ends_the_run(start, monkeypatch):
    server = Server(start()[0], None, 5.0)
    monkeypatch.setattr(server, "ask", lambda path, body: {"model": "capo-test-000001"})
    with pytest.raises(RuntimeError, match="asked for capo-test-000002 and answers by capo-test-0"):
        server.complete({"model": "capo-test-000002"})


def test_an_adapter_that_arrives_changed(start, monkeypatch):
    server = Server(start()[0], None, 5.0)
    sent = server._answer
    monkeypatch.setattr(
        server, "_answer", lambda method, path, body, kind: sent(method, path, body[:-1], kind)
    )
    with pytest.raises(ServerFailed, match="another adapter than was sent as capo-x"):
        server.load("capo-x", b"adapter")


def test_every_server_is_probed(start, sampler):
    """Made-up log-probabilities are nobody's: the first to answer is named."""
    (one, _), (other, _) = start(), start()
    both = sampler(one, other)
    both.sync()
    config = parse_config({"model": {"path": "x"}, "rollout": {"probe_bound": 0.5}})
    probe = Probe(both, both.policy, PROMPTS, 64, config)
    with pytest.raises(SamplerMismatch, match=rf"probe_bound = 0.5, {one}\)"):
        probe.check()
    assert asked(one) == asked(other) == len(probe.prompts)


def test_ranks_that_take_part_in_each_others_passes_make_equally_many(start, sampler, monkeypatch):
    """Here one server has answered; elsewhere three have, and one of them is wrong."""
    alone = sampler(start()[0])
    alone.sync()
    passes = []

    def counted(*arguments):
        passes.append(arguments)
        return token_log_probs(*arguments)

    monkeypatch.setattr("capo_ds.rollout.probe.token_log_probs", counted)
    for bound, elsewhere, expected in ((1e9, [3, 0], 4), (1e9, [1, -1], 1), (0.5, [1, 0], 2)):
        config = parse_config({"model": {"path": "x"}, "rollout": {"probe_bound": bound}})
        largest = partial(lambda others, own: max(own, next(others)), iter(elsewhere))
        probe = Probe(alone, alone.policy, PROMPTS, 64, config, largest)
        with pytest.raises(SamplerMismatch) if bound < 1 else nullcontext():
            probe.check()
        assert len(passes) == expected
        passes.clear()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "names no server"),
        ("node7:8000", r"'node7:8000' is no address; give http://HOST:PORT"),
        (["http://a:1", "ftp://b"], "'ftp://b' is no address"),
        (["http://a:1", "http://a:1/"], "http://a:1 is there twice"),
    ],
)
def test_addresses(value, message):
    with pytest.raises(ConfigError, match=message):
        parse_config({"rollout": {"server_url": value}})
