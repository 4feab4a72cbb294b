"""The sampler in a process of its own: the same bits, in order, and clean ends. (What all samplers
have in common is in test_sampler.py.)"""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection

import psutil
import pytest
import torch

from capo_ds.config import ConfigError, parse_config
from capo_ds.models import load_policy
from capo_ds.rollout import process as module
from capo_ds.rollout.base import Draw, Truncation
from capo_ds.rollout.hf import HuggingFaceSampler
from capo_ds.rollout.process import ProcessSampler
from tests.ranks import samplers_forked

ENDS, PAD, LIMIT = (2, 7), 0, 14
PROMPTS = [[5, 6, 3], [8], [9, 10, 11, 12, 13, 14]]
DRAWS = [Draw(0, 3, number) for number in range(len(PROMPTS))]


@pytest.fixture(scope="module")
def config(random_model):
    return parse_config(
        {
            "model": {"path": random_model, "lora_rank": 4, "lora_alpha": 8},
            "rollout": {"max_new_tokens": LIMIT, "timeout": 60},
        }
    )


@pytest.fixture(scope="module")
def policy(config):
    return load_policy(config.model, seed=0)


@pytest.fixture(scope="module")
def sampler(policy, config):
    return ProcessSampler(policy, ENDS, PAD, config)


def move(policy, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)


def assert_same(found, expected) -> None:
    for name, value in vars(expected).items():
        assert torch.equal(vars(found)[name], value), name


def test_what_was_asked_keeps_its_weights_and_bits(sampler, policy):
    """Three requests under three sets of weights, answers taken in another order: each is what
    the training model samples with those weights, bit by bit."""
    here = HuggingFaceSampler(policy, ENDS, PAD, LIMIT, batch_size=256)
    truncation, asked, expected = Truncation(top_k=20), [], []
    for seed in range(3):
        move(policy, seed)
        sampler.sync()
        arguments = (PROMPTS, DRAWS, 4, 0.8, None, truncation)
        asked.append(sampler.ask(*arguments))
        expected.append(here.sample(*arguments))
    assert not torch.equal(expected[0].log_probs, expected[1].log_probs)
    for number in (2, 0, 1):
        rollout, seconds = asked[number]()
        assert_same(rollout, expected[number])
        assert 0 < seconds < 60


def test_weights_that_are_not_those_sent_are_an_error(sampler, policy, monkeypatch):
    sampler.sync()
    monkeypatch.setattr(sampler, "_digest", "another")
    with pytest.raises(RuntimeError, match=r"sampled with weights \w+, not another"):
        sampler.sample(PROMPTS, DRAWS, 2, 1.0)
    monkeypatch.undo()
    sampler.sample(PROMPTS, DRAWS, 2, 1.0)


def test_an_error_in_there_is_told_and_the_next_request_answered(sampler):
    with pytest.raises(RuntimeError, match="in the sampler's process: IndexError"):
        sampler.sample([[10**6]], DRAWS[:1], 2, 1.0)
    assert len(sampler.sample(PROMPTS, DRAWS, 2, 1.0)) == 6


def test_a_slow_process_ends_the_wait(sampler, monkeypatch):
    os.kill(sampler._child.number, signal.SIGSTOP)
    monkeypatch.setattr(sampler, "timeout", 0.2)
    with pytest.raises(TimeoutError, match=r"not answered within rollout\.timeout = 0\.2 s"):
        sampler.sample(PROMPTS, DRAWS, 2, 1.0)
    os.kill(sampler._child.number, signal.SIGCONT)
    monkeypatch.undo()
    assert len(sampler.sample(PROMPTS, DRAWS, 2, 1.0)) == 6  # the answer before was for nobody


def test_signals_of_the_launcher_are_not_for_it(sampler):
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(sampler._child.number, number)
    assert len(sampler.sample(PROMPTS, DRAWS, 2, 1.0)) == 6


@pytest.fixture
def forked() -> Iterator[None]:
    with samplers_forked():
        yield


@pytest.mark.usefixtures("forked")
def test_factors_of_another_policy_and_an_end_in_mid_flight(config, policy, monkeypatch):
    own = ProcessSampler(policy, ENDS, PAD, config)
    monkeypatch.setattr(module, "factors_of", lambda policy: {"elsewhere": torch.ones(2)})
    own.sync()
    monkeypatch.undo()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="not those of the sampler's policy"):
            own.sample(PROMPTS, DRAWS, 2, 1.0)
    os.kill(own._child.number, signal.SIGSTOP)
    asked = own.ask(PROMPTS, DRAWS, 2, 1.0)
    os.kill(own._child.number, signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"ended by SIGKILL; the memory may not have sufficed"):
        asked()
    own.sync()
    with pytest.raises(RuntimeError, match="ended by SIGKILL"):
        own.sample(PROMPTS, DRAWS, 2, 1.0)


@pytest.mark.usefixtures("forked")
def test_a_model_that_it_cannot_load(config, policy, tmp_path):
    gone = config.model_copy(
        update={"model": config.model.model_copy(update={"path": str(tmp_path)})}
    )
    with pytest.raises(ConfigError, match=r"model\.path"):
        ProcessSampler(policy, ENDS, PAD, gone)


@pytest.mark.usefixtures("forked")
def test_it_ends_with_whoever_holds_it(config, policy):
    own = ProcessSampler(policy, ENDS, PAD, config)
    child = psutil.Process(own._child.number)
    own.ask(PROMPTS, DRAWS, 200, 1.0)
    del own
    assert psutil.wait_procs([child], 30)[0]


def start_a_child(told: Connection) -> None:
    child = module.Child()
    told.send(child.number)
    time.sleep(60)


def test_it_ends_with_a_parent_that_is_killed():
    """In the midst of work, which it does not look up from."""
    context = multiprocessing.get_context("fork")
    told, tells = context.Pipe()
    parent = context.Process(target=start_a_child, args=(tells,))
    parent.start()
    child = psutil.Process(told.recv())
    while len(child.open_files()) == 0 and child.num_threads() < 2:
        time.sleep(0.05)
    parent.kill()
    parent.join()
    assert psutil.wait_procs([child], 30)[0]
