"""Whether a continuation sees that a file holds something else than when its run began."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from capo_ds import contents, run_state
from capo_ds.config import parse_config
from capo_ds.plugins import named

STEP = 7
COLUMNS = {"prompt_column": "q", "answer_column": "a"}


@pytest.fixture
def files(tmp_path):
    """Data, a reward with a module beside it, and a model of more than both ends of a file."""
    (tmp_path / "rows.jsonl").write_text("{}\n" * 40)
    (tmp_path / "paid.py").write_text("import beside_paid\ndef f(completions): return []\n")
    (tmp_path / "beside_paid.py").write_text("worth = 1\n")
    (tmp_path / "model").mkdir()
    tensors = {name: torch.zeros(2**19) for name in "abcd"}
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    (tmp_path / "model" / "README.md").touch()
    yield tmp_path
    sys.modules.pop("beside_paid", None)


@pytest.fixture
def config(files):
    named("reward.functions", f"{files}/paid.py:f")
    settings = {
        "task": {"name": "custom", "path": str(files / "rows.jsonl")} | COLUMNS,
        "reward": {"functions": [{"function": f"{files}/paid.py:f"}]},
        "model": {"path": str(files / "model")},
        "train": {"output_dir": str(files), "resume": "auto"},
    }
    return parse_config(settings)


def a_tensor(file):
    save_file({name: torch.full((2**19,), float(name == "c")) for name in "abcd"}, file)


CHANGES = {
    "task.path: {}/rows.jsonl": lambda f: (f / "rows.jsonl").write_text("{}\n" * 30),
    "reward.functions.function: {}/paid.py": lambda f: (f / "paid.py").write_text("f = len\n"),
    "reward.functions.function: {}/beside_paid.py": lambda f: (f / "beside_paid.py").write_text(
        "worth = 2\n"
    ),
    "model.path: {}/model/model.safetensors": lambda f: a_tensor(f / "model" / "model.safetensors"),
}


def look(config):
    return contents.contents(config, run_state.FREE_ON_RESUME)


@pytest.mark.parametrize("told", CHANGES)
def test_a_file_that_has_changed_is_told_with_its_key(files, config, told):
    before = json.loads(json.dumps(look(config)))
    assert contents.changes(before, look(config), STEP) == []
    CHANGES[told](files)
    (files / "model" / "README.md").write_text("a card")
    assert contents.changes(before, look(config), STEP) == [
        f"{told.format(files)} has changed since step {STEP}: the run goes on, but not as it "
        "would have"
    ]


@pytest.mark.usefixtures("process_group")
def test_a_resumed_run_warns_and_one_of_a_checkpoint_without_digests_does_not(
    files, config, monkeypatch, capsys
):
    learner = SimpleNamespace(
        solver=SimpleNamespace(radius=SimpleNamespace(restore=lambda _: None)), store_kind="host"
    )
    state = {"step": STEP, "accuracy": {}, "best_step": 0, "radius": None, "store": "host"}
    monkeypatch.setattr(run_state.checkpoint, "load", lambda *_: state)
    run_state.resumed(config, None, learner)
    assert capsys.readouterr().err == ""
    state["contents"] = look(config)
    (files / "rows.jsonl").write_text("")
    assert run_state.resumed(config, None, learner).contents == look(config)
    assert capsys.readouterr().err.startswith(f"warning: task.path: {files}/rows.jsonl has changed")


def test_texts_that_are_no_paths_are_passed_over(config):
    told = {"options": {"a": "x" * 1000, "b": "a\0b", "c": "/root/none", "d": "."}}
    settings = config.model_dump() | {"task": config.task.model_dump() | told}
    look(parse_config(settings))
