"""Ctrl-C as a terminal sends it, to launcher and ranks at once; two runs in one place."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from capo_ds.interruption import SAME_KEY
from tests.conftest import REPOSITORY, TIMEOUT, clean_environment, free_port, launch
from tests.end_to_end.test_train import TRAIN, arguments

LONG = {
    "train.steps": 500,
    "train.eval_every": 0,
    "train.save_every": 0,
    "objective.minibatches": 1,
}
# Seconds of a step: deepspeed's own process is gone before it ends.
LONG_STEPS = {"rollout.prompts_per_step": 64, "task.train_problems": 64}
AHEAD = {"rollout.sampler": "process", "rollout.ahead": 1, "rollout.dynamic_sampling": 0}


def start(launcher: str, folder: Path, **changes) -> subprocess.Popen:
    """A long run of two ranks in the background, in a process group of its own."""
    settings = arguments(folder, **LONG | changes)
    port, python = str(free_port()), sys.executable
    words = {
        "deepspeed": ["deepspeed.launcher.runner", "--quiet", "--num_accelerators", "2"],
        "torchrun": ["torch.distributed.run", "--nproc_per_node", "2"],
    }[launcher]
    return subprocess.Popen(
        [python, "-m", *words, "--master_port", port, str(TRAIN), *settings],
        cwd=REPOSITORY,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for_lines(process: subprocess.Popen, folder: Path, count: int) -> None:
    """Of the metrics log: steps that have been made."""
    log, deadline = folder / "metrics.jsonl", time.monotonic() + TIMEOUT
    while not log.exists() or len(log.read_text().splitlines()) < count:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


def wait_for_words(process: subprocess.Popen, words: str) -> None:
    """Letter by letter: a progress bar ends no line."""
    told = ""
    while words not in told:
        letter = process.stdout.read(1)
        assert letter, told
        told += letter


def samplers(process: subprocess.Popen) -> list[psutil.Process]:
    """The processes of its ranks' samplers."""
    everyone = psutil.Process(process.pid).children(recursive=True)
    return [each for each in everyone if any("rollout.child" in word for word in each.cmdline())]


@pytest.mark.parametrize(
    ("launcher", "changes"),
    [
        ("deepspeed", {}),
        pytest.param("torchrun", {}, marks=pytest.mark.slow),
        pytest.param("deepspeed", LONG_STEPS, marks=pytest.mark.slow),
        pytest.param("deepspeed", AHEAD, marks=pytest.mark.slow),
        pytest.param("torchrun", AHEAD, marks=pytest.mark.slow),
    ],
)
def test_ctrl_c_finishes_the_step_and_saves(tmp_path, launcher, changes):
    process = start(launcher, tmp_path / "run", **changes)
    wait_for_lines(process, tmp_path / "run", 1)
    beside = samplers(process)
    assert len(beside) == (2 if changes == AHEAD else 0)
    os.killpg(process.pid, signal.SIGINT)
    told, _ = process.communicate(timeout=TIMEOUT)
    assert psutil.wait_procs(beside, 30)[1] == []
    assert told.count("ending after this step, with a checkpoint") == 1, told
    ended = re.search(r"interrupted after step (\d+)", told)
    assert ended, told
    done = int(ended[1])
    assert (tmp_path / "run" / "checkpoints" / f"step{done:06d}" / "manifest.json").is_file()
    for words in ("terminate called", "ProcessGroupGloo", "capo_ds/"):  # no trace of ours
        assert words not in told.replace(str(tmp_path), ""), told
    again = launch(
        1, TRAIN, *arguments(tmp_path / "run", **LONG | changes | {"train.steps": done + 1})
    )
    assert re.search(rf"goes on  after step {done}, from .*/step{done:06d}", again.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, AHEAD])
def test_a_second_ctrl_c_ends_at_once(tmp_path, changes):
    """In the midst of a step of minutes, which an evaluation goes before."""
    large = {"rollout.prompts_per_step": 1000, "task.train_problems": 1000, "train.eval_every": 1}
    large |= {"aggregator": "mean", "measure_conflict": False} | changes
    process = start("deepspeed", tmp_path / "run", **large)
    wait_for_words(process, "0/500 |")  # from here on a signal is heard
    beside = samplers(process)
    os.killpg(process.pid, signal.SIGINT)
    wait_for_words(process, "Ctrl-C again ends at once")
    time.sleep(SAME_KEY + 0.1)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=TIMEOUT)
    assert process.returncode != 0
    assert psutil.wait_procs(beside, 30)[1] == []
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1


@pytest.mark.slow
def test_two_runs_do_not_share_a_folder(tmp_path):
    process = start("deepspeed", tmp_path / "run")
    try:
        wait_for_lines(process, tmp_path / "run", 1)
        for more in ([], ["--dry-run"]):
            result = launch(1, TRAIN, *arguments(tmp_path / "run", **LONG), *more, status=2)
            assert "is in use by process" in result.stderr and "Traceback" not in result.stderr
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_a_busy_port_is_one_line(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        alone = [{"MASTER_PORT": str(port)}]
        result = launch(1, TRAIN, *arguments(tmp_path / "run"), status=2, variables=alone)
    assert f"port {port} of 127.0.0.1 is taken" in result.stderr
    assert "--master_port" in result.stderr and "Traceback" not in result.stderr
