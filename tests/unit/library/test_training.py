"""A run from one's own process: callbacks, stops, errors, and what is left behind."""

import json
import os
import signal
import threading
import time

import pytest
import torch.distributed as dist

from capo_ds import Callback, ConfigError, Trainer, load_config
from capo_ds.distributed import comm
from capo_ds.interruption import SAME_KEY, Interruption
from tests.conftest import launch

SMALL = [
    "aggregator=capo",
    "rollout.prompts_per_step=2",
    "rollout.group_size=2",
    "rollout.max_new_tokens=8",
    "task.train_problems=16",
    "task.test_problems=4",
    "train.eval_every=2",
    "train.save_every=0",
]


class Watch(Callback):
    """Notes what it is told, and asks for the end at one moment."""

    def __init__(self, stop_at=None):
        self.told, self.stop_at = [], stop_at

    def on_step_end(self, event):
        assert {"reward/mean", "time/rollout", "loss/grad_norm"} <= event.metrics.keys()
        self._note("step", event)

    def on_evaluation_end(self, event):
        assert 0 <= event.metrics["eval/accuracy"] <= 1
        self._note("evaluation", event)

    def _note(self, moment, event):
        self.told.append((moment, event.step))
        event.metrics.clear()  # it is the callback's own copy
        if self.stop_at == (moment, event.step):
            event.stop()


class Failing(Callback):
    def __init__(self, error):
        self.error = error

    def on_step_end(self, event):
        raise self.error


def config(folder, *more):
    return load_config("builtin:quickstart", [*SMALL, f"train.output_dir={folder}", *more])


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize(
    ("stop_at", "told"),
    [
        (("evaluation", 0), [("evaluation", 0)]),
        (("step", 1), [("evaluation", 0), ("step", 1)]),
        (None, [("evaluation", 0), ("step", 1), ("evaluation", 2), ("step", 2)]),
    ],
)
def test_callbacks_are_told_and_may_end_the_run(tmp_path, stop_at, told):
    watch, other = Watch(stop_at), Watch()
    result = Trainer(config(tmp_path, "train.steps=2"), [watch, other]).run()
    assert watch.told == other.told == told
    assert result.finished and result.step == told[-1][1]
    assert (result.adapter / "adapter_model.safetensors").exists()
    assert [line["step"] for line in result.metrics] == list(range(result.step + 1))
    assert dist.is_initialized()  # a group that was there is left
    saved = result.step > 0
    assert (tmp_path / "checkpoints" / f"step{result.step:06d}").exists() == saved
    if stop_at == ("step", 1):  # what was ended on purpose can be gone on with
        again = Watch()
        more = Trainer(config(tmp_path, "train.steps=2", "train.resume=auto"), [again]).run()
        assert (more.step, again.told) == (2, [("evaluation", 2), ("step", 2)])


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("error", [ValueError("no such thing"), SystemExit("no such thing")])
def test_an_error_in_a_callback_ends_the_run_under_its_name(tmp_path, error):
    words = f"callbacks failed on rank 0: .*Failing.on_step_end: {type(error).__name__}: no such"
    with pytest.raises(RuntimeError, match=words) as raised:
        Trainer(config(tmp_path, "train.steps=2"), [Failing(error)]).run()
    assert isinstance(raised.value, comm.PeerError)
    assert raised.value.__cause__.__cause__ is error  # its traceback shows where


@pytest.mark.usefixtures("process_group")
def test_a_bad_setting_is_told_before_anything_starts(tmp_path):
    with pytest.raises(ConfigError, match="deepspeed"):
        Trainer(config(tmp_path, "deepspeed=nothing.json")).run()
    assert not list(tmp_path.iterdir())


def test_two_runs_in_a_process_of_their_own_leave_no_group_behind(tmp_path):
    (tmp_path / "two.py").write_text(f"""
import json, os, torch.distributed as dist
from capo_ds import Trainer, load_config
os.chdir({str(tmp_path)!r})
small, told = {SMALL!r}, []
for name in "ab":
    settings = [*small, "train.steps=1", "train.eval_every=0", "train.output_dir=" + name]
    result = Trainer(load_config("builtin:quickstart", settings)).run()
    told.append([result.step, result.finished, dist.is_initialized(), "RANK" in os.environ])
json.dump(told, open("told.json", "w"))
""")
    launch(1, tmp_path / "two.py")
    assert json.loads((tmp_path / "told.json").read_text()) == [[1, True, False, False]] * 2


def test_in_anothers_process_the_second_interrupt_is_a_keyboard_interrupt():
    before = signal.getsignal(signal.SIGINT)
    ending = Interruption(lambda: "", "ending", embedded=True)
    with pytest.raises(KeyboardInterrupt), ending:
        os.kill(os.getpid(), signal.SIGINT)
        deadline = time.monotonic() + 60
        while not ending.asked and time.monotonic() < deadline:
            time.sleep(0.01)
        assert ending.asked == 1
        time.sleep(SAME_KEY + 0.1)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    assert signal.getsignal(signal.SIGINT) is before


def test_in_a_thread_there_are_no_signals_to_listen_to():
    asked = []

    def work():
        with Interruption(lambda: "", "ending", embedded=True) as interruption:
            asked.append(interruption.asked)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert asked == [0]
