"""launchers/evaluate.py, own data and own rewards as a user runs them."""

import json
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, launch

EVALUATE = REPOSITORY / "launchers" / "evaluate.py"
TRAIN = REPOSITORY / "launchers" / "train.py"
RECIPE = REPOSITORY / "launchers" / "recipes" / "capo-embedded.yaml"
BENCHMARKS = (
    "[{name: arithmetic}, "
    "{name: custom, label: mine, path: %s, prompt_column: q, answer_column: a}]"
)
REWARD = """
def brevity(prompts, completions, kind, **columns):
    assert set(kind) == {"own"}
    return [-len(completion) / 100 for completion in completions]

def fails_for_one(prompts, completions, **columns):
    if any("6 apples" in prompt for prompt in prompts):
        raise ValueError("no word for six")
    return [0.0] * len(completions)
"""


@pytest.fixture(scope="module")
def own_data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "own.jsonl"
    rows = [
        {"q": f"Tom has {n} apples. He buys {n} more. How many apples does Tom have now?"}
        | {"a": 2 * n, "kind": "own"}
        for n in range(3, 10)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings(**changes) -> list[str]:
    pairs = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    return ["--config", str(RECIPE), *pairs]


def results(folder: Path) -> tuple[list[dict], list[dict]]:
    """What each benchmark came to, and all completions."""
    lines = (folder / "completions.jsonl").read_text().splitlines()
    return (
        json.loads((folder / "results.json").read_text())["benchmarks"],
        [json.loads(line) for line in lines],
    )


def test_an_evaluation_does_not_depend_on_the_number_of_ranks(tmp_path, own_data):
    k = 3
    changes = {
        "evaluation.benchmarks": BENCHMARKS % own_data,
        "evaluation.limit": 21,
        "evaluation.samples": k,
        "evaluation.temperature": 1.0,
        "rollout.batch_size": 8,
    }
    two = settings(**changes | {"evaluation.output_dir": tmp_path / "two"})
    told = launch(2, EVALUATE, *two).stdout
    one = settings(**changes | {"evaluation.output_dir": tmp_path / "one"})
    launch(1, EVALUATE, *one)
    (arithmetic, mine), completions = results(tmp_path / "two")
    assert (arithmetic, mine) == tuple(results(tmp_path / "one")[0])
    assert completions == results(tmp_path / "one")[1]
    assert (arithmetic["problems"], mine["problems"]) == (21, 7)
    assert len(completions) == 28 * k
    right = [line["correct"] for line in completions if line["benchmark"] == "arithmetic"]
    assert arithmetic["accuracy"] == pytest.approx(sum(right) / len(right))
    assert 0 < arithmetic["accuracy"] < 1
    assert told.count("avg@3") == told.count("pass@3") == 1
    assert told.count("Put the final answer in \\boxed{}.") == 1  # one prompt, shown in full


def test_training_on_own_data_with_own_rewards(tmp_path, own_data):
    (tmp_path / "mine.py").write_text(REWARD)
    changes = {
        "task.name": "custom",
        "task.path": own_data,
        "task.test_path": own_data,
        "task.prompt_column": "q",
        "task.answer_column": "a",
        "reward.functions": f"[{{function: rule, weight: 2.0}}, {{function: {tmp_path}/mine.py:"
        "brevity, weight: 0.5}]",
        "rollout.prompts_per_step": 3,
        "rollout.group_size": 4,
        "train.steps": 2,
        "train.output_dir": tmp_path / "run",
    }
    told = launch(2, TRAIN, *settings(**changes)).stdout
    assert "2 * rule + 0.5 * " in told and "custom: 7 training problems" in told
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[1])
    whole = 2 * first["reward/functions/rule"] + 0.5 * first["reward/functions/mine.py:brevity"]
    assert first["reward/mean"] == pytest.approx(whole, abs=1e-6)
    assert {"reward/unparsed", "reward/timed_out"} <= first.keys()
    completions = (tmp_path / "run" / "evaluations" / "step000002.jsonl").read_text()
    assert len(completions.splitlines()) == 7


def test_a_failing_reward_function_is_one_error_for_all_ranks(tmp_path, own_data):
    (tmp_path / "mine.py").write_text(REWARD)
    changes = {
        "task.name": "custom",
        "task.path": own_data,
        "task.prompt_column": "q",
        "task.answer_column": "a",
        "reward.functions": f"[{{function: {tmp_path}/mine.py:fails_for_one}}]",
        "rollout.prompts_per_step": 7,  # one of them makes one rank fail
        "train.eval_every": 0,
        "train.output_dir": tmp_path / "run",
    }
    told = launch(2, TRAIN, *settings(**changes), status=1).stderr
    assert told.count("error: scoring failed on rank") == 1
    assert "mine.py:fails_for_one: ValueError: no word for six" in told


def test_bad_data_is_told_once(tmp_path):
    changes = {"task.name": "gsm8k", "task.path": "./nowhere", "train.output_dir": tmp_path / "run"}
    told = launch(2, TRAIN, *settings(**changes), status=2).stderr
    assert told.count("no file or folder './nowhere'") == 1
    assert "Traceback" not in told and "TCPStore" not in told
