"""A run in this process, and another that goes on from it."""

import csv
import json
from pathlib import Path

import pytest

from capo_ds.config import parse_config
from capo_ds.trainer import Trainer

pytestmark = pytest.mark.usefixtures("process_group")


def train(folder: Path, steps: int, **sections) -> list[dict]:
    """The metrics log after a run of few short responses."""
    settings = {
        "model": {"path": "builtin:tiny", "lora_rank": 2},
        "rollout": {"prompts_per_step": 4, "group_size": 4, "max_new_tokens": 8},
        "task": {"train_problems": 32, "test_problems": 4},
        "objective": {"kl_weight": 0.01},
        "deepspeed": "ds_configs/zero0.json",
        "train": {
            "steps": steps,
            "eval_every": 0,
            "resume": "auto",
            "report_to": ["csv"],
            "output_dir": str(folder),
        },
    } | sections
    Trainer(parse_config(settings)).run()
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("aggregator", ["mean", "capo"])
def test_one_step_leaves_a_line_an_adapter_and_a_checkpoint(tmp_path, aggregator):
    (line,) = train(tmp_path, 1, aggregator=aggregator)
    assert line["step"] == 1 and line["loss/grad_norm"] > 0
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "checkpoints" / "step000001" / "manifest.json").is_file()


def test_the_csv_files_of_a_resumed_run_are_those_of_one_run(tmp_path):
    train(tmp_path, 1)
    file = tmp_path / "csv" / "reward_mean.csv"
    with open(file, "a") as log:
        log.write("2,0.5\n3,0.")  # as of a run that was killed before its next checkpoint
    lines = train(tmp_path, 2)
    header, *rows = csv.reader(file.read_text().splitlines())
    assert header == ["step", "mean"]
    found = [(int(step), pytest.approx(float(value))) for step, value in rows]
    assert found == [(line["step"], line["reward/mean"]) for line in lines]
