"""A run that is killed again and again ends as if nothing had happened."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.conftest import launch
from tests.end_to_end.test_train import TRAIN, arguments, check_equal, start

KILLS = 20
# More steps than twenty lives are long enough for, on whatever machine.
CHANGES = {"train.steps": 150, "train.save_every": 1, "train.eval_every": 50}


def starts(folder: Path) -> int:
    log = folder / "starts.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


@pytest.mark.slow
def test_killed_twenty_times(tmp_path):
    """At random moments after its start-up: in rollout, backward pass, solve, step or save."""
    moments = random.Random(0)
    folder = tmp_path / "killed"
    for kill in range(KILLS):
        process, before = start(folder, **CHANGES), starts(folder)
        deadline = time.monotonic() + 240
        while starts(folder) == before:
            assert process.poll() is None, f"ended before kill {kill}: {process.communicate()[0]}"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(moments.uniform(0.0, 2.0))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    launch(2, TRAIN, *arguments(folder, **CHANGES))
    launch(2, TRAIN, *arguments(tmp_path / "undisturbed", **CHANGES))
    check_equal(folder, tmp_path / "undisturbed")
