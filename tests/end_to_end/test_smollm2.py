"""A small real model on the real GSM8K: see tests/smollm2.py. Skipped where either is absent."""

import json
import os

import pytest

from tests.conftest import REPOSITORY, launch

MODEL = os.environ.get("SMOLLM2", "")
DATA = REPOSITORY.parent / "shared" / "data"
LAUNCHERS = REPOSITORY / "launchers"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not MODEL, reason="SMOLLM2 names no folder"),
    pytest.mark.skipif(not DATA.is_dir(), reason="the published files are not here"),
]


def settings(**changes) -> list[str]:
    changes = {
        "model.path": MODEL,
        "task.path": DATA / "gsm8k_train.jsonl",
        "task.test_path": DATA / "gsm8k_test.jsonl",
        **changes,
    }
    pairs = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    return ["--config", str(LAUNCHERS / "recipes" / "smollm2-135m-gsm8k.yaml"), *pairs]


def test_evaluation_on_64_questions(tmp_path):
    changes = {
        "evaluation.limit": 64,
        "evaluation.max_new_tokens": 24,  # 256 would take minutes, and it seldom boxes an answer
        "evaluation.output_dir": tmp_path,
        "rollout.batch_size": 32,
    }
    told = launch(2, LAUNCHERS / "evaluate.py", *settings(**changes)).stdout
    assert "<|im_start|>user\nJanet" in told.replace("\n            ", "\n")
    (result,) = json.loads((tmp_path / "results.json").read_text())["benchmarks"]
    assert result["problems"] == 64 and result["left_out"] == 0
    lines = (tmp_path / "completions.jsonl").read_text().splitlines()
    assert len(lines) == 64 and len({json.loads(line)["completion"] for line in lines}) > 32


def test_warm_up_then_reinforcement_learning(tmp_path):
    small = {
        "train.micro_batch_size": 2,
        "evaluation.limit": 2,
        "rollout.max_new_tokens": 160,
        "evaluation.max_new_tokens": 8,
    }
    warm = {
        "warmup.batch_size": 4,
        "warmup.max_steps": 2,
        "warmup.output_dir": tmp_path / "warm",
    }
    told = launch(2, LAUNCHERS / "warmup.py", *settings(**small | warm)).stdout
    assert "after 2 steps" in told
    learn = {
        "model.path": tmp_path / "warm",
        "rollout.prompts_per_step": 2,
        "rollout.group_size": 2,
        "rollout.max_new_tokens": 24,
        "train.steps": 2,
        "train.eval_every": 0,
        "train.save_every": 0,
        "train.output_dir": tmp_path / "run",
    }
    launch(2, LAUNCHERS / "train.py", *settings(**small | learn))
    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert [line["step"] for line in log] == [1, 2]
    assert (tmp_path / "run" / "adapter").is_dir()
