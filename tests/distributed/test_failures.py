"""A failure of one rank ends all of them, soon, with its own words."""

import re
import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, launch

SCRIPT = Path(__file__).with_name("failures.py")
RECIPE = REPOSITORY / "launchers" / "recipes" / "capo-embedded.yaml"
MINUTE = 60.0
TRAIN = REPOSITORY / "launchers" / "train.py"


def since_failure(printed: str) -> float:
    """Seconds from the moment at which the last rank failed (start-up takes its own time)."""
    return time.time() - float(re.search(r"fails at ([\d.]+)", printed)[1])


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("collective", "Gram matrix failed on rank {last}: OutOfMemoryError: tried to allocate"),
        ("unnamed", "rank {last}: ZeroDivisionError: a bug"),
    ],
)
@pytest.mark.parametrize(
    ("launcher", "ranks"),
    [
        pytest.param("forked", 2, marks=pytest.mark.slow),
        ("forked", 4),
        *(pytest.param(name, 2, marks=pytest.mark.slow) for name in ("deepspeed", "mpirun")),
        pytest.param("torchrun", 4, marks=pytest.mark.slow),
    ],
)
def test_no_rank_waits_for_one_that_has_failed(way, words, launcher, ranks):
    """What a launcher adds is that of `test_no_rank_outlives_one_that_was_killed` below."""
    arguments = ["--config", str(RECIPE), "--set", f"train.output_dir={way}"]
    result = launch(ranks, SCRIPT, *arguments, launcher=launcher, status=1)
    assert since_failure(result.stdout) < MINUTE  # the collective itself would wait for 30
    told = "error: " + words.format(last=ranks - 1)
    assert told in result.stderr, result.stderr


def test_a_collective_that_breaks_is_told_as_the_peers_failure_that_broke_it():
    arguments = ["--config", str(RECIPE), "--set", "train.output_dir=unheard"]
    told = launch(2, SCRIPT, *arguments, status=1).stderr
    words = "error: Gram matrix failed on rank 1: OutOfMemoryError: tried to allocate"
    assert told.count("error: ") == told.count(words) == 1, told
    assert told.count("Traceback") == 1 and "TCPStore" not in told  # that of rank 1


OWN = """
import json
import os
from pathlib import Path

def divide():
    return 1 / int(Path("/dev/null").stat().st_size)

def part():
    return divide()  # too bold

def leaves():
    raise SystemExit(0)

def elsewhere():
    return json.loads("{")

def ends():
    os._exit(0)
"""


PLACES = {
    "part": ("division by zero", ["line 10, in part", "return divide()", "line 7, in divide"]),
    "leaves": ("SystemExit: 0", ["line 13, in leaves", "raise SystemExit(0)"]),
    "elsewhere": ("JSONDecodeError: Expecting", ["line 16, in elsewhere"]),
}


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("together", "part"),
        ("collective", "part"),
        ("own", "part"),
        ("together", "leaves"),
        ("own", "leaves"),
        ("collective", "elsewhere"),
    ],
)
def test_an_error_of_users_code_is_told_once_with_its_place(tmp_path, kind, name):
    error, places = PLACES[name]
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    way = f"train.output_dir={kind}:{file}:{name}"
    result = launch(2, SCRIPT, "--config", str(RECIPE), "--set", way, status=1)
    assert result.stderr.count("error: ") == 1 and "Traceback" not in result.stderr
    assert result.stderr.count(str(file)) == 1 + (name == "part")
    for words in (error, *places):
        assert result.stderr.count(words) == 1, result.stderr
    for words in ("plugins.py", "comm.py", "failures.py", "decoder.py"):
        assert words not in result.stderr


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_rank_that_users_code_ends_has_failed(tmp_path, ranks):
    """With status 0, for which a launcher would take its part as done."""
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    way = f"train.output_dir=collective:{file}:ends"
    result = launch(ranks, SCRIPT, "--config", str(RECIPE), "--set", way, status=1)
    told = " ".join(result.stderr.split())
    words = f"rank {ranks - 1}: os._exit(0) was called in {file}, line 19, in ends: it ends the"
    assert told.count(words) == 1, told


@pytest.mark.parametrize(
    "launcher", [pytest.param("deepspeed", marks=pytest.mark.slow), "torchrun", "mpirun"]
)
def test_no_rank_outlives_one_that_was_killed(launcher):
    """Within a minute, and somebody says what happened: the peer that noticed, or the launcher.
    Before that, the collectives are sound under this launcher. (deepspeed's with a rank on another
    node besides: test_launchers.py.)"""
    arguments = ["--config", str(RECIPE), "--set", "train.output_dir=killed"]
    result = launch(2, SCRIPT, *arguments, launcher=launcher, status=None)
    told = result.stdout + result.stderr
    assert result.stdout.count("collectives are sound") == 2
    assert since_failure(result.stdout) < MINUTE
    assert result.returncode != 0
    assert any(word in told for word in ("local_rank=1", "local_rank: 1", "SIGKILL", "signal 9")), (
        told
    )
