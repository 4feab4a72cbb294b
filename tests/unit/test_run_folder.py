"""A run's folder is one run's: locks that die with their owner, and checks that leave no trace."""

import errno
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
import torch

from capo_ds import cli
from capo_ds.config import ConfigError, parse_config
from capo_ds.not_finite import NotFiniteError, check_finite
from capo_ds.run_folder import (
    LOCK_FILE,
    FolderLock,
    check_folder,
    check_unchanged,
    claim_run,
    going_on,
)
from tests.conftest import clean_environment


def hold(folder: Path, held: Event) -> None:
    lock = FolderLock("train.output_dir", folder)
    held.set()
    time.sleep(60)
    lock.release()


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of tmp_path / "run"; a fork, so that it need import nothing."""
    context = multiprocessing.get_context("fork")
    held = context.Event()
    process = context.Process(target=hold, args=(tmp_path / "run", held))
    process.start()
    assert held.wait(60)
    yield process
    process.kill()
    process.join()


def test_a_folder_in_use_is_refused_with_its_owner(tmp_path, holder):
    for take in (FolderLock, check_folder):
        with pytest.raises(ConfigError, match=f"in use by process {holder.pid} on .*choose anoth"):
            take("train.output_dir", tmp_path / "run")


def test_the_lock_of_a_killed_run_is_gone(tmp_path, holder):
    holder.kill()
    holder.join()
    assert (tmp_path / "run" / LOCK_FILE).exists()
    check_folder("train.output_dir", tmp_path / "run")
    FolderLock("train.output_dir", tmp_path / "run").release()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    for take in (FolderLock, check_folder):
        with pytest.raises(ConfigError, match=r"train.output_dir: .*choose another folder"):
            take("train.output_dir", tmp_path / "file" / "run")


@pytest.mark.usefixtures("process_group")
def test_a_place_that_is_none_is_refused_by_run_and_dry_run_alike(tmp_path):
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "nowhere").symlink_to(tmp_path / "no" / "place")
    for place in (tmp_path / ("x" * 300), tmp_path / "circle" / "run", tmp_path / "nowhere"):
        config = parse_config({"train": {"output_dir": str(place)}})
        for dry in (True, False):
            with pytest.raises(ConfigError, match=r"^train.output_dir: ") as error:
                claim_run(config, dry)
            assert len(str(error.value).splitlines()) == 1


def test_a_full_disk_is_one_line(monkeypatch, tmp_path):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("capo_ds.run_folder.socket.gethostname", full)  # what is written fails
    with pytest.raises(ConfigError, match=r"train.output_dir: .*No space left.*make room"):
        FolderLock("train.output_dir", tmp_path)
    told = "saving failed on rank 1: SafetensorError: No space left on device (os error 28)"
    assert cli.is_full(RuntimeError(told)) and not cli.is_full(RuntimeError("no room"))


@pytest.mark.usefixtures("process_group")
def test_a_dry_claim_refuses_the_same_and_makes_nothing(tmp_path):
    config = parse_config({"train": {"output_dir": str(tmp_path / "a" / "b")}})
    assert claim_run(config, dry=True) is None
    assert not (tmp_path / "a").exists()
    lock = claim_run(config)
    (tmp_path / "a" / "b" / "metrics.jsonl").touch()
    for dry in (True, False):
        with pytest.raises(ConfigError, match="already holds a run"):
            claim_run(config, dry)
    lock.release()


def test_last_words_promise_no_checkpoint_that_is_not_there(tmp_path):
    assert "no checkpoint" in going_on(tmp_path)
    (tmp_path / "checkpoints" / "step000004.unfinished").mkdir(parents=True)
    assert "no checkpoint" in going_on(tmp_path)
    (tmp_path / "checkpoints" / "step000003").mkdir()
    assert "after step 3" in going_on(tmp_path)


INTERRUPTED = """
import sys
from capo_ds import interruption
interruption.SAME_KEY = float(sys.argv[2])
finish = "ending after this step" if sys.argv[1] == "finish" else None
with interruption.Interruption(lambda: "going on is easy", finish):
    print("ready", flush=True)
    sys.stdin.readline()  # until it is closed
print("finished", flush=True)
"""


@pytest.mark.parametrize(
    ("mode", "same_key", "sent", "status", "said"),
    [
        ("end", 0.5, [signal.SIGINT], 130, "interrupted: going on is easy"),
        ("finish", 0.5, [signal.SIGINT], 0, "ending after this step; Ctrl-C again ends at once"),
        ("finish", 0.5, [signal.SIGTERM], 0, ""),
        # As deepspeed and torchrun pass it on: at the same moment, which is one wish.
        ("finish", 60, [signal.SIGINT, signal.SIGTERM, signal.SIGINT], 0, "ending after this"),
        ("finish", 0.5, [signal.SIGINT, 0.6, signal.SIGINT], 130, "interrupted: going on is"),
    ],
)
def test_signals(mode, same_key, sent, status, said):
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, mode, str(same_key)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(),
    )
    assert process.stdout.readline() == "ready\n"
    for what in sent:
        if isinstance(what, float):
            heard = [process.stderr.readline() for _ in range(2)]  # an empty line is the first
            assert heard == ["\n", "ending after this step; Ctrl-C again ends at once\n"]
            time.sleep(what)
        else:
            process.send_signal(what)
    out, err = process.communicate(timeout=120)
    assert process.returncode == status, err
    assert (out == "finished\n") == (status == 0)
    assert said in err and "Traceback" not in err
    assert len(list(filter(None, err.splitlines()))) <= 2


def test_handlers_are_put_back():
    from capo_ds.interruption import Interruption

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Interruption(str, "finishing") as interruption:
        os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + 60
        while not interruption.asked and time.monotonic() < deadline:
            time.sleep(0.01)
        assert interruption.asked == 1
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_checkpoint_of_an_older_version_is_read_in_todays_words():
    config = parse_config({"aggregator": "conflict_free"})
    old = config.model_dump(mode="json") | {"aggregator": "config"}
    del old["objective"]["baseline"], old["objective"]["name"], old["aggregator_options"]
    old["objective"]["scale_advantages"] = True
    check_unchanged(config, {"config": old})
    old["objective"]["scale_advantages"] = False
    with pytest.raises(ConfigError, match=r"scale_advantages: 'none' in the checkpoint, 'group'"):
        check_unchanged(config, {"config": old})


def test_signals_of_a_fork_are_its_own():
    """As of a pool of processes in a reward function, which is ended by SIGTERM."""
    from capo_ds.interruption import Interruption

    with Interruption(str, "finishing") as interruption:
        reads, writes = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writes, b"!")
            time.sleep(60)
            os._exit(0)
        assert os.read(reads, 1) == b"!"
        os.kill(child, signal.SIGINT)  # Ctrl-C reaches all of the terminal
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGTERM
        time.sleep(0.1)
        assert interruption.asked == 0
    os.close(reads), os.close(writes)


def test_a_changed_setting_is_refused_with_the_way_to_go_on_from_what_was_learned(tmp_path):
    adapter = tmp_path / "checkpoints" / "step000003" / "adapter"
    adapter.mkdir(parents=True)
    settings = {"train": {"output_dir": str(tmp_path)}, "optimizer": {"learning_rate": 0.5}}
    state = {"config": parse_config(settings).model_dump(mode="json")}
    settings["optimizer"]["learning_rate"] = 0.25
    with pytest.raises(ConfigError) as told:
        check_unchanged(parse_config(settings), state)
    assert f"model.adapter: {adapter} " in str(told.value)


@pytest.mark.parametrize("own", ["grpo", "mine.py:f"])
@pytest.mark.parametrize("saved", [True, False])
def test_a_gradient_that_is_not_finite_names_what_works(tmp_path, own, saved):
    adapter = tmp_path / "checkpoints" / "step000003" / "adapter"
    if saved:
        adapter.mkdir(parents=True)
    settings = {"train": {"output_dir": str(tmp_path)}, "objective": {"name": own}}
    config = parse_config(settings)
    check_finite([torch.ones(2), torch.zeros(1)], config)
    with pytest.raises(NotFiniteError) as told:
        check_finite([torch.ones(2), torch.tensor([math.nan])], config)
    text = str(told.value)
    assert "lower optimizer.learning_rate, another train.output_dir" in text
    assert (f"model.adapter: {adapter} " in text) == saved
    assert ("objective.name: see whether mine.py:f" in text) == (own != "grpo")
