"""What a forecast counts as exchanged is what a step exchanges."""

import json
from pathlib import Path

import pytest

from capo_ds.config import HOME
from tests.conftest import launch

TRAIN = HOME / "launchers" / "train.py"
SCRIPT = Path(__file__).with_name("exchanged.py")
SETTINGS = (
    "rollout.prompts_per_step=4",
    "rollout.group_size=4",
    "rollout.max_new_tokens=8",
    "train.steps=2",
    "train.eval_every=0",
    "train.save_every=0",
    "train.log_samples_every=0",
    "train.report_to=[]",
    "objective.kl_weight=0.001",
)
pytestmark = pytest.mark.slow
BULK = ("all_to_all", "reduce", "all_reduce")  # without objects, whose pickles vary in size


@pytest.mark.parametrize(
    ("ranks", "settings"),
    [
        (2, []),
        (4, ["deepspeed=ds_configs/zero0.json", "gradients.dtype=bfloat16"]),
        (2, ["gradients.sketch=sparse", "gradients.sketch_dim=512", "capo.radius=1"]),
        (2, ["objective.minibatches=4", "objective.epochs=2"]),  # a prompt each
    ],
    ids=["exact", "four ranks", "sketched", "mini-batches"],
)
def test_counted_exchanges_are_those_of_a_step(ranks, settings, tmp_path):
    words = [*SETTINGS, *settings]
    result = launch(ranks, SCRIPT, str(tmp_path / "run"), *words)
    line = next(line for line in result.stdout.splitlines() if line.startswith("exchanged "))
    found = json.loads(line.partition(" ")[2])
    made, counted = found["made"], found["counted"]
    assert made.keys() == counted.keys()
    for kind, (calls, size) in made.items():
        assert counted[kind][0] == pytest.approx(calls, abs=2), kind
        if kind in BULK:
            assert counted[kind][1] == pytest.approx(size, rel=0.02), kind


def dry_run(ranks: int, tmp_path: Path, *words: str, status: int = 0):
    settings = [word for key in SETTINGS for word in ("--set", key)]
    recipe = ["--config", "builtin:capo-embedded", "--set", f"train.output_dir={tmp_path}/run"]
    return launch(ranks, TRAIN, *recipe, *settings, "--dry-run", *words, status=status)


def test_rates_that_were_measured_serve_as_a_file(tmp_path):
    """Two ranks of one machine: nothing is known of the link to another, and nothing is written."""
    told = dry_run(2, tmp_path, "--nodes", "1").stdout
    assert "machines: 1 of 2 ranks, N = 16 samples" in told
    head, _, rates = told.partition("(a file for --cluster, which lacks `between`):\n")
    assert "between" not in rates and "within" in rates and "all_to_all" in rates
    assert float(head.split("       step")[1].split()[0]) > 0
    file = tmp_path / "rates.yaml"
    file.write_text(rates)
    again = dry_run(1, tmp_path, "--nodes", "1", "--cluster", file).stdout
    assert "machines: 1 of 2" in again
    memory = [text[text.index("memory per rank") :].splitlines()[1:5] for text in (told, again)]
    assert memory[0] == memory[1]  # with weights and without
    refused = dry_run(1, tmp_path, "--nodes", "2", "--cluster", file, status=2)
    assert "no link between" in refused.stderr and "Traceback" not in refused.stderr
    refused = dry_run(2, tmp_path, "--nodes", "2", status=2)
    assert "cannot be measured on one" in refused.stderr and "Traceback" not in refused.stderr
    assert not (tmp_path / "run").exists()


def test_a_forecast_needs_neither_weights_nor_data(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "model_type": "qwen2",
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "vocab_size": 1000,
            }
        )
    )
    words = ["--set", f"model.path={tmp_path}", "--set", "task.path=/not/there.jsonl"]
    assert "rates, as measured" in dry_run(1, tmp_path, "--nodes", "1", *words).stdout
    words += ["--nodes", "8", "--cluster", HOME / "launchers" / "cluster" / "a800.yaml"]
    told = dry_run(1, tmp_path, *words).stdout
    assert "ranks 4 to 63 have no prompts in a step (raise rollout.prompts_per_step)" in told
    assert "gradients (gradients.store: device" in told
    refused = dry_run(1, tmp_path, *words, "--set", "model.lora_targets=[nothing]", status=2)
    assert "model.lora_targets" in refused.stderr and "Traceback" not in refused.stderr
