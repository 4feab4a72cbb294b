"""What fails at start-up, where the ranks need each other in every pass, ends all of them soon."""

import json
from pathlib import Path

import pytest

from capo_ds import rehearsal
from tests.conftest import REPOSITORY, launch
from tests.distributed.test_failures import since_failure

SCRIPT = Path(__file__).with_name("rehearsed.py")
RECIPE = REPOSITORY / "launchers" / "recipes" / "capo-embedded.yaml"
APART = Path(__file__).with_name("apart.py")
SOON = 30.0  # seconds
MEMORY = "OutOfMemoryError: too bold"
REFUSED = "qwen2 models cannot be trained with these settings: a pass over one row fails"


@pytest.mark.parametrize(
    ("where", "error", "who", "status", "words"),
    [
        ("loading", "OutOfMemoryError", "last", 1, f"loading the model failed on rank 1: {MEMORY}"),
        ("pass", "OutOfMemoryError", "last", 1, f"error: rehearsal failed on rank 1: {MEMORY}"),
        pytest.param(
            *("pass", "ValueError", "last", 1, "rehearsal failed on rank 1: ConfigError: model."),
            marks=pytest.mark.slow,
        ),
        ("pass", "ValueError", "all", 2, REFUSED),
        pytest.param(
            *("judging", "ConfigError", "last", 2, "config error\ntoo bold"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_rank_that_fails_in_a_pass_is_not_waited_for(tmp_path, where, error, who, status, words):
    zero3 = {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}
    (tmp_path / "zero3.json").write_text(json.dumps(zero3))
    values = {"deepspeed": tmp_path / "zero3.json", "train.output_dir": tmp_path / "run"}
    values |= {"model.lora_targets": "all-linear", "model.path": "builtin:tiny"}
    arguments = ["--config", str(RECIPE)]
    for key, value in values.items():
        arguments += ["--set", f"{key}={value}"]
    ran = launch(2, SCRIPT, where, error, who, *arguments, status=status)
    assert since_failure(ran.stdout) < SOON
    assert ran.stderr.count(words) == 1, ran.stderr
    assert ran.stderr.count("error: ") + ran.stderr.count("config error\n") == 1, ran.stderr


def test_ranks_at_zero_3_rehearse_responses_that_end_apart(tmp_path):
    """Of unequal lengths, which take unequally many passes; those that the run samples elsewhere
    are decoded in lockstep, and end nowhere."""
    zero3 = {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}
    (tmp_path / "zero3.json").write_text(json.dumps(zero3))
    ranks = json.loads(launch(2, APART, str(tmp_path)).stdout.splitlines()[-1])
    own = ranks["hf"]
    assert all(min(rank["lengths"]) < rehearsal.NEW_TOKENS for rank in own)
    assert own[0]["lengths"] != own[1]["lengths"]
    assert own[0]["passes"] != own[1]["passes"]
    for rank in ranks["process"]:
        assert rank["lengths"] == [rehearsal.NEW_TOKENS] * 4
