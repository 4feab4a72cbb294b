"""`capo launch`: Ctrl-C goes to the ranks, and a loss is followed by another start."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from capo_ds.commands.launch import main, missing
from tests.conftest import REPOSITORY, TIMEOUT, clean_environment, free_port, launch
from tests.end_to_end.test_interrupted import LONG, wait_for_lines
from tests.end_to_end.test_train import (
    TRAIN,
    adapter,
    arguments,
    check_equal,
    metrics,
)

LAUNCHERS = ["deepspeed", "torchrun", "mpirun"]
STARTED = "started"
RANK = f"""
import os, signal, sys, time
from pathlib import Path
finishing, number = sys.argv[1] == "finishing", os.environ["RANK"]
def interrupted(*_):
    if not finishing or Path("asked" + number).exists():
        print("rank ended at once"); sys.exit(130)
    Path("asked" + number).touch()
signal.signal(signal.SIGINT, interrupted)
if finishing:
    signal.signal(signal.SIGTERM, interrupted)
Path("{STARTED}" + number).touch()
while not (Path("asked0").exists() and Path("finish").exists()):
    time.sleep(0.01)
print("rank finished")
"""
PARENT = """
import os, subprocess, sys
ranks = [subprocess.Popen([sys.executable, *sys.argv[1:]], env=os.environ | {"RANK": str(number)})
         for number in range(2)]
try:
    sys.exit(max(rank.wait() for rank in ranks))
except KeyboardInterrupt:
    print("a launcher's traceback")
    raise
"""


def kept(*command: str, restarts: int = 0, folder: Path = REPOSITORY) -> subprocess.Popen:
    """`capo launch` in the background, as a shell would start it."""
    options = ["--restarts", str(restarts), "--pause", "0"]
    return subprocess.Popen(
        [sys.executable, "-m", "capo_ds", "launch", *options, *map(str, command)],
        cwd=folder,
        env=clean_environment() | {"DS_ACCELERATOR": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def launcher(name: str, ranks: int | str = 2) -> list[str]:
    python, port = sys.executable, str(free_port())
    deepspeed = [python, "-m", "deepspeed.launcher.runner", "--quiet", "--num_accelerators"]
    torchrun = [python, "-m", "torch.distributed.run", "--nproc_per_node", str(ranks)]
    mpirun = [str(Path(python).with_name("mpirun")), "--allow-run-as-root", "--oversubscribe"]
    return {
        "deepspeed": [*deepspeed, str(ranks), "--master_port", port],
        "torchrun": [*torchrun, "--master_port", port],
        "mpirun": [*mpirun, "-np", str(ranks), python],
    }[name]


# ---------------------------------------------------------------- signals, on ranks of ten lines


def family(tmp_path: Path, way: str) -> subprocess.Popen:
    """A launcher of two ranks, once both are there."""
    (tmp_path / "rank.py").write_text(RANK)
    (tmp_path / "parent.py").write_text(PARENT)
    process = kept(sys.executable, "parent.py", "rank.py", way, folder=tmp_path)
    while not all((tmp_path / f"{STARTED}{number}").exists() for number in range(2)):
        assert process.poll() is None
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ranks_that_can_finish_do(tmp_path, number):
    process = family(tmp_path, "finishing")
    os.killpg(process.pid, number)
    while not all((tmp_path / f"asked{rank}").exists() for rank in range(2)):
        assert process.poll() is None
    (tmp_path / "finish").touch()  # as long afterwards as they like
    told, _ = process.communicate(timeout=30)
    assert process.returncode == 0 and told == "rank finished\n" * 2


def test_the_second_time_they_end_at_once(tmp_path):
    process = family(tmp_path, "finishing")
    os.killpg(process.pid, signal.SIGINT)
    while not all((tmp_path / f"asked{rank}").exists() for rank in range(2)):
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    told, _ = process.communicate(timeout=30)
    assert process.returncode == 130 and told == "rank ended at once\n" * 2


def test_before_the_first_step_all_ends_with_one_line(tmp_path):
    process = family(tmp_path, "starting")
    below = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    told, _ = process.communicate(timeout=30)
    assert process.returncode == 130 and told == "\ninterrupted: nothing new was saved\n"
    _, alive = psutil.wait_procs(below, timeout=0)
    assert len(below) == 3
    assert all(child.status() == psutil.STATUS_ZOMBIE for child in alive)  # nobody's to read


# ---------------------------------------------------------------- restarts, on commands of one line


@pytest.mark.parametrize(
    ("ends", "restarts", "starts", "status"),
    [
        ("7", 2, 3, 7),  # as often as may be
        ("$((7 - 7 * CAPO_START))", 5, 2, 0),
        ("2", 5, 1, 2),  # a setting cannot be used
        ("7", 0, 1, 7),
        ("0", 5, 1, 0),
    ],
)
def test_a_command_is_started_again(ends, restarts, starts, status):
    process = kept("bash", "-c", f"echo start; exit {ends}", restarts=restarts)
    told, _ = process.communicate(timeout=60)
    assert (told.splitlines().count("start"), process.returncode) == (starts, status), told


def test_a_setting_that_cannot_be_used_is_not_tried_again_by_torchrun():
    """Which ends with 1, whatever its ranks end with."""
    setting = ["--config", "builtin:quickstart", "--set", "model.lora_rnk=3"]
    process = kept(*launcher("torchrun", 1), TRAIN, *setting, restarts=1)
    told, _ = process.communicate(timeout=TIMEOUT)
    assert told.count("model.lora_rnk") == 1 and process.returncode == 2, told


def test_a_killed_command_counts_as_lost():
    process = kept("bash", "-c", "kill -9 $$", restarts=1)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 137 and "status 137; start 1 of 1 follows in 0 s" in told


def test_two_dashes_may_stand_before_the_command():
    process = kept("--", "bash", "-c", "exit $((3 + CAPO_START))", restarts=1)
    assert process.wait(timeout=60) == 4


@pytest.mark.parametrize("words", [["--restarts", "-1", "true"], ["--pause", "-1", "true"], []])
def test_what_is_no_command_is_refused(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["capo launch", *words])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "error: " in capsys.readouterr().err


def test_a_command_that_is_not_there_is_one_line():
    told, _ = (process := kept("no-such-launcher", "x", restarts=3)).communicate(timeout=60)
    assert process.returncode == 2 and "no-such-launcher: No such file" in told


@pytest.mark.skipif(bool(shutil.which("pdsh")), reason="pdsh is here")
@pytest.mark.parametrize("way", ([], ["--no_ssh"], ["--launcher", "openmpi"]))
def test_pdsh_is_named_where_it_is_needed(way):
    command = ["deepspeed", *way, "--hostfile=hosts", "train.py"]
    told = missing(command)
    assert told is None if way else "apt install pdsh" in told
    assert missing(["mpirun", "--hostfile", "hosts"]) is None


# ---------------------------------------------------------------- the real launchers


@pytest.mark.slow
@pytest.mark.parametrize("name", LAUNCHERS)
def test_ctrl_c_leaves_no_word_of_the_launcher(tmp_path, name):
    folder = tmp_path / "run"
    process = kept(*launcher(name), str(TRAIN), *arguments(folder, **LONG))
    wait_for_lines(process, folder, 1)
    os.killpg(process.pid, signal.SIGINT)
    told, _ = process.communicate(timeout=120)
    assert process.returncode == 0, told
    last = [line for line in re.split(r"[\r\n]", told) if line.strip()]
    at = next(n for n, line in enumerate(last) if line.startswith("ending after this step"))
    done = int(re.search(r"interrupted after step (\d+)", told)[1])
    assert (folder / "checkpoints" / f"step{done:06d}" / "manifest.json").is_file()
    for word in ("Traceback", "KeyboardInterrupt", "SignalException", "mpirun", "terminate called"):
        assert word not in told, told
    words = [line for line in last[at + 1 :] if "step/s" not in line and "left" not in line]
    assert words[0].startswith("interrupted after step"), words


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    launch(2, TRAIN, *arguments(folder))
    return folder


def lose_a_rank(process: subprocess.Popen, folder: Path) -> None:
    wait_for_lines(process, folder, 4)  # steps 0 to 3; a checkpoint of step 2
    below = psutil.Process(process.pid).children(recursive=True)
    ranks = [child for child in below if "RANK" in str(child.environ().keys())]
    (last,) = [rank for rank in ranks if rank_of(rank) == "1" and str(TRAIN) in rank.cmdline()]
    last.kill()


def rank_of(process: psutil.Process) -> str | None:
    environment = process.environ()
    return environment.get("RANK") or environment.get("OMPI_COMM_WORLD_RANK")


@pytest.mark.slow
@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_lost_rank_and_a_second_start_equal_an_undisturbed_run(undisturbed, tmp_path, name):
    folder = tmp_path / "run"
    settings = arguments(folder, **{"train.resume": "auto"})
    process = kept(*launcher(name), str(TRAIN), *settings, restarts=1)
    lose_a_rank(process, folder)
    told, _ = process.communicate(timeout=240)
    assert process.returncode == 0 and "start 1 of 1" in told, told
    assert "goes on  after step 2" in told
    check_equal(folder, undisturbed)


@pytest.mark.slow
def test_a_lost_rank_and_a_second_start_without_it(undisturbed, tmp_path):
    """A script decides by CAPO_START how many ranks there are: one fewer each time."""
    folder = tmp_path / "run"
    words = [*launcher("deepspeed", "$((2 - CAPO_START))"), str(TRAIN)]
    words += [f"'{word}'" for word in arguments(folder, **{"train.resume": "auto"})]
    process = kept("bash", "-c", " ".join(words), restarts=1)
    lose_a_rank(process, folder)
    told, _ = process.communicate(timeout=240)
    assert process.returncode == 0 and "ranks  1" in told, told
    ours, whole = metrics(folder), metrics(undisturbed)
    assert ours[:3] == whole[:3]
    for one, other in zip(ours[3:], whole[3:], strict=True):
        assert one["reward/mean"] == pytest.approx(other["reward/mean"])
        assert one["conflict/all_before"] == pytest.approx(other["conflict/all_before"], rel=1e-3)
    expected = adapter(undisturbed)
    for name, value in adapter(folder).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-4)
