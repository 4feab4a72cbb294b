"""What users type: `capo` itself, `capo merge`, and the table of `capo reproduce`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from capo_ds import __main__, __version__, merging
from capo_ds.commands import merge, reproduce
from capo_ds.models import load_policy
from tests.unit.test_architectures import trained_adapter


@pytest.fixture
def typed(monkeypatch, capsys):
    """Called with a command's `main` and its arguments; its status and what it has printed."""

    def run(main, *words) -> tuple[int | str | None, str, str]:
        monkeypatch.setattr(sys, "argv", ["capo", *map(str, words)])
        status: int | str | None = 0
        try:
            main()
        except SystemExit as ended:
            status = ended.code
        told = capsys.readouterr()
        return status, told.out, told.err

    return run


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_capo_alone_lists_its_commands(typed, words):
    status, out, _ = typed(__main__.main, *words)
    listed = {line.split()[0]: line.split(maxsplit=1)[1:] for line in out.splitlines() if line}
    assert status == 0 and out.startswith("usage: capo COMMAND")
    assert all(listed[name.replace("_", "-")][0] for name in __main__.COMMANDS)


def test_capo_tells_its_version(typed):
    assert typed(__main__.main, "--version") == (0, f"{__version__}\n", "")


@pytest.mark.parametrize("name", ["tran", "--config", "commands", "../doctor", ""])
def test_what_is_no_command_is_told_with_those_there_are(typed, name):
    status, out, told = typed(__main__.main, name)
    assert (status, out) == (2, "")
    assert told.startswith(f"error: no command {name!r}\n") and "usage: capo COMMAND" in told


@pytest.mark.parametrize("name", [name.replace("_", "-") for name in __main__.COMMANDS])
def test_every_command_explains_itself(typed, name):
    status, out, _ = typed(__main__.main, name, "--help")
    assert status == 0 and out.startswith(f"usage: capo {name}")


HELP = """
import sys
from contextlib import suppress
from capo_ds import __main__
for name in __main__.COMMANDS:
    sys.argv = ["capo", name.replace("_", "-"), "--help"]
    with suppress(SystemExit):
        __main__.main()
print("came:", *{"torch", "transformers", "matplotlib", "scipy", "sympy"} & {*sys.modules})
"""


def test_an_explanation_waits_for_no_large_library():
    told = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=True)
    assert told.stdout.splitlines()[-1] == "came:"
    assert told.stdout.count("usage: capo ") == len(__main__.COMMANDS)


# ---------------------------------------------------------------- merge


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merged_model_needs_no_adapter(typed, tmp_path, dtype):
    config = trained_adapter("builtin:tiny", tmp_path / "adapter")
    output = tmp_path / "merged"
    words = ["--adapter", tmp_path / "adapter", "--output", output, "--dtype", dtype]
    status, out, _ = typed(merge.main, *words)
    assert status == 0 and f"merged into builtin:tiny: {output}" in out
    merged = AutoModelForCausalLM.from_pretrained(output).eval()
    assert merged.dtype == getattr(torch, dtype)
    if dtype == "float32":
        policy, ids = load_policy(config, seed=0).eval(), torch.arange(12).view(2, 6) + 3
        with torch.no_grad():
            torch.testing.assert_close(merged(ids).logits, policy(ids).logits, rtol=1e-4, atol=1e-4)
    assert (output / "tokenizer.json").exists()
    told = f"error: --output: {output} is not empty; choose another folder\n"
    status, _, said = typed(merge.main, *words)
    assert status == 2 and said.endswith(told)


@pytest.mark.parametrize("place", ["file", "file/below", "~nobody-of-that-name/x"])
def test_a_place_that_is_no_folder_is_told_before_any_work(typed, tmp_path, monkeypatch, place):
    (tmp_path / "file").write_text("here")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(merging, "base_of", None)  # any work
    status, _, told = typed(merge.main, "--adapter", "adapter", "--output", place)
    assert status == 2 and told.startswith("error: --output: ") and told.count("\n") == 1


def test_an_adapter_that_cannot_be_merged_is_told_in_one_line(typed, tmp_path):
    words = ["--output", tmp_path / "merged", "--adapter", tmp_path / "adapter"]
    status, _, said = typed(merge.main, *words)
    assert status == 2 and said.startswith("error: --adapter: ") and said.count("\n") == 1
    trained_adapter("builtin:tiny", tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    told = json.loads(file.read_text())
    file.write_text(json.dumps(told | {"base_model_name_or_path": None}))
    status, _, said = typed(merge.main, *words)
    assert status == 2 and said.endswith("does not name its base model; give --model\n")
    assert not (tmp_path / "merged").exists()


@pytest.mark.usefixtures("process_group")
def test_a_merge_that_speaks_otherwise_is_refused(typed, tmp_path, monkeypatch):
    trained_adapter("builtin:tiny", tmp_path / "adapter")
    said = iter([[[5, 6], [7]], [[5, 6], [8]]])  # with the adapter; merged
    monkeypatch.setattr(merging, "_greedy", lambda *_: next(said))
    words = ["--adapter", tmp_path / "adapter", "--output", tmp_path / "merged"]
    status, _, _ = typed(merge.main, *words)
    assert "does not continue as the adapter on its base" in str(status)


def test_in_bfloat16_the_first_token_must_agree():
    assert merging._same([[5, 6], [7]], [[5, 9], [7]], "bfloat16")
    assert not merging._same([[5, 6], [7]], [[5, 9], [7]], "float32")
    assert not merging._same([[5, 6], [7]], [[4, 6], [7]], "bfloat16")


# ---------------------------------------------------------------- reproduce


class Ranks:
    """In the place of the ranks: each command leaves what a run of it leaves."""

    def __init__(self) -> None:
        self.ran: list[tuple[str, dict[str, str]]] = []
        self.trains_to_the_end = True

    def __call__(self, command: list[str], check: bool) -> None:
        assert check  # an error of the ranks ends the program
        name = command[command.index("--module") + 1].rpartition(".")[2]
        given = [command[i + 1] for i, word in enumerate(command) if word == "--set"]
        settings = dict(setting.split("=", 1) for setting in given)
        self.ran.append((name, settings))
        if name == "train" and self.trains_to_the_end:
            Path(settings["train.output_dir"], "adapter").mkdir()
        if name == "evaluate":
            line = {"benchmark": "test", "accuracy": 0.25, "standard_error": 0.01}
            folder = Path(settings["evaluation.output_dir"])
            folder.mkdir()
            (folder / "results.json").write_text(json.dumps({"benchmarks": [line]}))


@pytest.fixture
def ranks(monkeypatch):
    ranks = Ranks()
    monkeypatch.setattr(subprocess, "run", ranks)
    return ranks


def test_reproduce_trains_and_evaluates_each_method_once(typed, ranks, tmp_path):
    words = ["--smoke", "--radii", "0.1", "1", "--output", tmp_path]
    status, out, _ = typed(reproduce.main, *words)
    assert status == 0 and "| CAPO, C = 0.1 | 25.00 ± 1.00 | - |" in out
    names = [name for name, _ in ranks.ran]
    assert names == ["evaluate", *["train", "evaluate"] * 3]
    trained = [settings for name, settings in ranks.ran if name == "train"]
    assert [run["aggregator"] for run in trained] == ["mean", "capo", "capo"]
    assert [run.get("capo.radius") for run in trained] == [None, "0.1", "1.0"]
    assert {run["train.resume"] for run in trained} == {"auto"}
    evaluated = [run.get("evaluation.adapter", "") for name, run in ranks.ran if name != "train"]
    assert [Path(path).parent.name for path in evaluated] == ["", "grpo", "capo-0.1", "capo-1"]
    assert typed(reproduce.main, *words)[:2] == (0, out) and len(ranks.ran) == 7  # all is there
    assert list(json.loads((tmp_path / "table.json").read_text())) == ["smoke"]


def test_reproduce_goes_on_where_it_was_interrupted(typed, ranks, tmp_path):
    ranks.trains_to_the_end = False
    status, _, _ = typed(reproduce.main, "--smoke", "--output", tmp_path)
    assert "was interrupted; start again to go on with it" in str(status)
    ranks.trains_to_the_end, done = True, len(ranks.ran)
    assert typed(reproduce.main, "--smoke", "--output", tmp_path)[0] == 0
    names = [name for name, _ in ranks.ran[done:]]
    assert names == ["train", "evaluate"] * 2  # the model before was evaluated the first time


def test_reproduce_does_not_mix_settings(typed, ranks, tmp_path):
    assert typed(reproduce.main, "--smoke", "--output", tmp_path)[0] == 0
    words = ["--smoke", "--output", tmp_path, "--set", "train.steps=5"]
    status, _, _ = typed(reproduce.main, *words)
    assert "was made with other settings" in str(status)
