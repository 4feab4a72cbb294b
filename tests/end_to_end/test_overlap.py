"""Rollouts that overlap with learning: staleness, resuming, and ends in mid-flight."""

import os
import random
import re
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import launch
from tests.end_to_end.test_train import (
    REPOSITORY,
    TRAIN,
    arguments,
    check_equal,
    metrics,
    pattern_of,
    start,
    wait_for_lines,
)

AHEAD = {
    "rollout.sampler": "process",
    "rollout.ahead": 1,
    "optimizer.learning_rate": 1e-3,  # so that weights of other steps sample other responses
    "objective.minibatches": 1,
    "train.steps": 4,
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "ahead"
    launch(2, TRAIN, *arguments(folder, **AHEAD))
    return folder


def children_of(process) -> list[psutil.Process]:
    """The samplers of a run in the background."""
    below = psutil.Process(process.pid).children(recursive=True)
    return [child for child in below if any("rollout.child" in w for w in child.cmdline())]


def test_responses_are_a_step_old_and_corrected(undisturbed):
    lines = metrics(undisturbed)[1:]
    assert [line["rollout/staleness"] for line in lines] == [0, 1, 1, 1]
    assert lines[0]["rollout/log_prob_difference"] < 1e-5
    assert all(line["rollout/log_prob_difference"] > 1e-4 for line in lines[1:])
    assert all(line["rollout/effective_sample_size"] < 1 for line in lines[1:])
    assert all(line["rollout/probe_difference"] < 1e-5 for line in lines)
    page = (REPOSITORY / "docs" / "metrics.md").read_text()
    cells = " ".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `"))
    told = re.compile("|".join(map(pattern_of, re.findall("`(.*?)`", cells))))
    assert not [name for name in {*lines[-1]} - {"step"} if not told.fullmatch(name)]


def test_the_first_two_steps_have_the_first_weights(undisturbed, tmp_path):
    """As without: step 0 is the same, and step 1 learns from what W_0 says to its prompts."""
    launch(2, TRAIN, *arguments(tmp_path / "now", **AHEAD | {"rollout.ahead": 0, "train.steps": 2}))
    ahead, now = metrics(undisturbed), metrics(tmp_path / "now")
    for name in ("reward/mean", "rollout/entropy"):
        assert ahead[1][name] == now[1][name], name
    # The ratio is to the sampler's probabilities, which are the trainer's up to rounding.
    assert ahead[1]["loss/grad_norm"] == pytest.approx(now[1]["loss/grad_norm"], rel=1e-4)
    assert ahead[2]["rollout/entropy"] != now[2]["rollout/entropy"]


def test_killed_and_resumed_equals_undisturbed(undisturbed, tmp_path):
    folder = tmp_path / "killed"
    process = start(folder, **AHEAD)
    wait_for_lines(process, folder, 4)  # steps 0 to 3; a checkpoint is of step 2
    samplers = children_of(process)
    assert len(samplers) == 2
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not psutil.wait_procs(samplers, 20)[1]
    launch(2, TRAIN, *arguments(folder, **AHEAD))
    check_equal(folder, undisturbed)


def test_a_longer_run_goes_on_as_if_it_had_been_long(undisturbed, tmp_path):
    """In two parts: the responses under way at the end of the first are taken up."""
    for steps in (2, 4):
        launch(2, TRAIN, *arguments(tmp_path / "run", **AHEAD | {"train.steps": steps}))
    check_equal(tmp_path / "run", undisturbed)


def test_two_ahead_on_other_ranks(tmp_path):
    """Two steps on one rank, two on two: the responses under way are dealt out anew."""
    changes = AHEAD | {"rollout.ahead": 2, "train.eval_every": 0}
    for ranks, steps in ((1, 2), (2, 4)):
        launch(ranks, TRAIN, *arguments(tmp_path / "run", **changes | {"train.steps": steps}))
    launch(1, TRAIN, *arguments(tmp_path / "whole", **changes | {"train.steps": 4}))
    for ours, expected in zip(metrics(tmp_path / "run"), metrics(tmp_path / "whole"), strict=True):
        for name in ("reward/mean", "rollout/length", "rollout/staleness"):
            assert ours[name] == expected[name], name
        assert ours["loss/grad_norm"] == pytest.approx(expected["loss/grad_norm"], rel=1e-2)


def test_ctrl_c_finishes_the_step_and_saves_what_is_under_way(undisturbed, tmp_path):
    folder = tmp_path / "run"
    process = start(folder, **AHEAD)
    wait_for_lines(process, folder, 2)
    samplers = children_of(process)
    os.killpg(process.pid, signal.SIGINT)
    told, _ = process.communicate(timeout=120)
    assert told.count("ending after this step, with a checkpoint") == 1, told
    for words in ("terminate called", "capo_ds/", "sampler's process"):
        assert words not in told.replace(str(tmp_path), ""), told
    assert not psutil.wait_procs(samplers, 20)[1]
    launch(2, TRAIN, *arguments(folder, **AHEAD))
    check_equal(folder, undisturbed)


def test_a_sampler_that_dies_in_mid_flight_is_told_once(tmp_path):
    folder = tmp_path / "run"
    process = start(folder, **AHEAD | {"train.steps": 500, "train.eval_every": 0})
    wait_for_lines(process, folder, 2)
    samplers = children_of(process)
    samplers[0].kill()
    told, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert re.search("error: (rollout|probe) failed on rank . .*was ended by SIGKILL", told), told
    assert not psutil.wait_procs(samplers, 20)[1]


def test_ahead_is_not_free_on_resume(undisturbed):
    changes = AHEAD | {"rollout.ahead": 2, "train.steps": 8}
    result = launch(2, TRAIN, *arguments(undisturbed, **changes), status=2)
    told = result.stdout + result.stderr
    assert told.count("rollout.ahead: 1 in the checkpoint, 2 now") == 1


@pytest.mark.slow
def test_killed_many_times(undisturbed, tmp_path):
    """At moments of all kinds, ranks and samplers and all."""
    folder, draw, kills = tmp_path / "run", random.Random(0), 0
    while kills < 6:
        process = start(folder, **AHEAD)
        done = 1 + kills
        wait_for_lines(process, folder, min(done, 4))
        time.sleep(draw.uniform(0, 0.5))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        kills += 1
    launch(2, TRAIN, *arguments(folder, **AHEAD))
    check_equal(folder, undisturbed)
