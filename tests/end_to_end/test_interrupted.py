"""Ctrl-C as a terminal sends it, to launcher and ranks at once; two runs in one place."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, TIMEOUT, clean_environment, free_port, launch
from tests.end_to_end.test_train import TRAIN, arguments

LONG = {
    "train.steps": 500,
    "train.eval_every": 0,
    "train.save_every": 0,
    "objective.minibatches": 1,
}


def start(launcher: str, folder: Path) -> subprocess.Popen:
    """A long run of two ranks in the background, in a process group of its own."""
    port, python = str(free_port()), sys.executable
    words = {
        "deepspeed": ["deepspeed.launcher.runner", "--quiet", "--num_accelerators", "2"],
        "torchrun": ["torch.distributed.run", "--nproc_per_node", "2"],
    }[launcher]
    return subprocess.Popen(
        [python, "-m", *words, "--master_port", port, str(TRAIN), *arguments(folder, **LONG)],
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


@pytest.mark.parametrize(
    "launcher", ["deepspeed", pytest.param("torchrun", marks=pytest.mark.slow)]
)
def test_ctrl_c_finishes_the_step_and_saves(tmp_path, launcher):
    process = start(launcher, tmp_path / "run")
    wait_for_lines(process, tmp_path / "run", 1)
    os.killpg(process.pid, signal.SIGINT)
    told, _ = process.communicate(timeout=TIMEOUT)
    assert told.count("ending after this step, with a checkpoint") == 1, told
    done = int(re.search(r"terminated after step (\d+)", told)[1])
    assert (tmp_path / "run" / "checkpoints" / f"step{done:06d}" / "manifest.json").is_file()
    for words in ("terminate called", "ProcessGroupGloo", "capo_ds/"):  # no trace of ours
        assert words not in told.replace(str(tmp_path), ""), told
    changes = LONG | {"train.steps": done + 1}
    again = launch(1, TRAIN, *arguments(tmp_path / "run", **changes))
    assert re.search(rf"goes on  after step {done}, from .*/step{done:06d}", again.stdout)


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once(tmp_path):
    process = start("deepspeed", tmp_path / "run")
    wait_for_lines(process, tmp_path / "run", 1)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.6)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode != 0


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
        result = subprocess.run(
            [sys.executable, str(TRAIN), *arguments(tmp_path / "run")],
            cwd=REPOSITORY,
            env=clean_environment() | {"MASTER_PORT": str(port)},
            capture_output=True,
            text=True,
            check=False,
        )
    assert result.returncode == 2
    assert f"port {port} of 127.0.0.1 is taken" in result.stderr
    assert "--master_port" in result.stderr and "Traceback" not in result.stderr
