"""Rollouts that overlap with learning: staleness, resuming, and ends in mid-flight."""

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import REPOSITORY, clean_environment, free_port, launch, wait_until_served
from tests.end_to_end.test_train import (
    SIGNALLED,
    TRAIN,
    adapter,
    arguments,
    check_equal,
    metrics,
    told_metrics,
)

AHEAD = {
    "rollout.sampler": "process",
    "rollout.ahead": 1,
    "optimizer.learning_rate": 1e-3,  # so that weights of other steps sample other responses
    "objective.minibatches": 1,
    "rollout.dynamic_sampling": 0,
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "ahead"
    launch(2, TRAIN, *arguments(folder, **AHEAD))
    return folder


def test_responses_are_a_step_old_and_corrected(undisturbed):
    lines = metrics(undisturbed)[1:]
    assert [line["rollout/staleness"] for line in lines] == [0, 1, 1, 1]
    assert lines[0]["rollout/log_prob_difference"] < 1e-5
    assert all(line["rollout/log_prob_difference"] > 1e-4 for line in lines[1:])
    assert all(line["rollout/effective_sample_size"] < 1 for line in lines[1:])
    told = told_metrics()
    assert not [name for name in {*lines[-1]} - {"step"} if not told.fullmatch(name)]


@pytest.mark.parametrize(
    ("word", "update", "status"),
    [
        ("SAMPLER", "3", 1),
        pytest.param("SIGKILL", "4", -signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param("SIGINT", "3", 0, marks=pytest.mark.slow),
        pytest.param("SIGTERM", "3", 0, marks=pytest.mark.slow),
    ],
)
def test_ended_in_an_update_and_resumed_equals_undisturbed(
    undisturbed, tmp_path, word, update, status
):
    """Both ranks, while their samplers are at the next step's responses; with Ctrl-C and SIGTERM
    these are in the checkpoint, without they were in the one before. Or the sampler of rank 1
    itself, of which both tell."""
    folder = tmp_path / "run"
    ended = launch(2, SIGNALLED, word, update, *arguments(folder, **AHEAD), status=status)
    told = ended.stdout + ended.stderr
    if word == "SAMPLER":
        assert re.search(r"error: .* failed on rank 1: .* was ended by SIGKILL", told), told
    else:
        assert "sampler's process" not in told
    assert [line["step"] for line in metrics(folder)] == [0, 1, 2, 3]
    launch(2, TRAIN, *arguments(folder, **AHEAD))
    check_equal(folder, undisturbed)


@pytest.fixture
def servers() -> Iterator[Callable[[], dict[str, subprocess.Popen]]]:
    """Two servers, by their addresses; their answers take a second."""
    processes: list[subprocess.Popen] = []

    def start() -> dict[str, subprocess.Popen]:
        found = {}
        for port in (free_port(), free_port()):
            words = [sys.executable, "-m", "tests.model_server", str(port), "1"]
            process = subprocess.Popen(words, cwd=REPOSITORY, env=clean_environment())
            found[f"http://127.0.0.1:{port}"] = process
            processes.append(process)
        for url, process in found.items():
            wait_until_served(url, process)
        return found

    yield start
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_server_that_dies_in_mid_flight(servers, tmp_path):
    """Of two, the first when the third step's responses have been asked for, before the second's
    update: the run goes on, and what it learns is the same. Then the other, and the run ends."""
    running = servers()
    changes = AHEAD | {"rollout.sampler": "server", "rollout.server_url": f"[{', '.join(running)}]"}
    changes |= {"train.eval_every": 0, "train.steps": 3}
    launch(2, TRAIN, *arguments(tmp_path / "whole", **changes))
    (lost, first), (last, second) = running.items()
    own = arguments(tmp_path / "run", **changes)
    result = launch(2, SIGNALLED, str(first.pid), "3", *own)
    told = " ".join(result.stderr.split())
    # Whichever of the two answers under way breaks first: the step's responses or the probe's.
    left_out = f"{re.escape(lost)} is lost in (sampling|the probe) and left out .* 1 left"
    assert re.search(left_out, told), told
    for ours, expected in zip(metrics(tmp_path / "run"), metrics(tmp_path / "whole"), strict=True):
        for name in ("reward/mean", "rollout/length", "rollout/staleness", "loss/grad_norm"):
            assert ours.get(name) == expected.get(name), name
    expected = adapter(tmp_path / "whole")
    for name, value in adapter(tmp_path / "run").items():
        assert torch.equal(value, expected[name]), name
    changes |= {"rollout.server_url": last}
    own = arguments(tmp_path / "ended", **changes)
    result = launch(2, SIGNALLED, str(second.pid), "3", *own, status=1)
    told = " ".join(result.stderr.split())
    assert told.count("error: ") == 1, result.stderr
    assert f"{last} is lost in " in told.partition("error: ")[2], told


@pytest.mark.slow
def test_a_longer_run_goes_on_as_if_it_had_been_long(undisturbed, tmp_path):
    """In two parts: the responses under way at the end of the first are taken up."""
    for steps in (2, 4):
        launch(2, TRAIN, *arguments(tmp_path / "run", **AHEAD | {"train.steps": steps}))
    check_equal(tmp_path / "run", undisturbed)


@pytest.mark.slow
def test_two_ahead_on_other_ranks(tmp_path):
    """Two steps on one rank, two on two: the responses under way are dealt out anew."""
    changes = AHEAD | {"rollout.ahead": 2, "train.eval_every": 0}
    for ranks, steps in ((1, 2), (2, 4)):
        launch(ranks, TRAIN, *arguments(tmp_path / "run", **changes | {"train.steps": steps}))
    launch(1, TRAIN, *arguments(tmp_path / "whole", **changes))
    for ours, expected in zip(metrics(tmp_path / "run"), metrics(tmp_path / "whole"), strict=True):
        for name in ("reward/mean", "rollout/length", "rollout/staleness"):
            assert ours[name] == expected[name], name
        assert ours["loss/grad_norm"] == pytest.approx(expected["loss/grad_norm"], rel=1e-2)


def test_ahead_is_not_free_on_resume(undisturbed):
    changes = AHEAD | {"rollout.ahead": 2, "train.steps": 8}
    result = launch(2, TRAIN, *arguments(undisturbed, **changes), status=2)
    told = result.stdout + result.stderr
    assert told.count("rollout.ahead: 1 in the checkpoint, 2 now") == 1


@pytest.mark.slow
def test_killed_again_and_again(undisturbed, tmp_path):
    """Each start lives for some updates, to the first of which no checkpoint may have come."""
    folder, draw = tmp_path / "run", np.random.default_rng(0)
    for _ in range(6):
        update = str(draw.integers(1, 5))
        launch(2, SIGNALLED, "SIGKILL", update, *arguments(folder, **AHEAD), status=None)
    launch(2, TRAIN, *arguments(folder, **AHEAD))
    check_equal(folder, undisturbed)
