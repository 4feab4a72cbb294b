"""What a forecast counts as exchanged is what a step exchanges."""

import json
from pathlib import Path

import pytest

from tests.conftest import launch

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
        (2, ["objective.minibatches=2", "objective.epochs=2"]),
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
