"""A base in 4 bits on two ranks: the update, and a run that goes on from a checkpoint."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.tiny_models import build
from capo_ds.config import ModelConfig
from capo_ds.models import load_base_model
from capo_ds.quantization import dequantised
from tests.conftest import REPOSITORY, launch
from tests.end_to_end.test_train import TRAIN, arguments, metrics

pytestmark = [
    pytest.mark.skipif(not find_spec("bitsandbytes"), reason="needs bitsandbytes"),
    pytest.mark.slow,
]


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_the_update_is_that_of_the_weights_that_four_bits_stand_for(name, tmp_path):
    build(name, tmp_path / "plain")
    config = ModelConfig(path=str(tmp_path / "plain"), load_in_4bit=True)
    base = load_base_model(config)
    base.save_pretrained(tmp_path / "stored")
    dequantised(base, config).save_pretrained(tmp_path / "meant")
    folders = [str(tmp_path / "stored"), str(tmp_path / "meant")]
    ran = launch(2, REPOSITORY / "benchmarks" / "one_update.py", *folders)
    errors = json.loads(ran.stdout.splitlines()[-1])
    assert errors.keys() == {"ZeRO 2", "ZeRO 3"}
    assert max(errors.values()) < 1e-4


@pytest.mark.parametrize("stage", [2, 3])
def test_a_run_goes_on_as_if_it_had_not_ended(stage, tmp_path):
    zero = {"zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0}}
    settings = tmp_path / "deepspeed.json"
    settings.write_text(json.dumps(zero))

    def run(folder: Path, steps: int) -> str:
        changes = {"deepspeed": settings, "train.steps": steps, "model.load_in_4bit": True}
        changes |= {"train.eval_every": 0, "train.save_every": 1, "optimizer.schedule": "constant"}
        return launch(2, TRAIN, *arguments(folder, **changes)).stdout

    assert "nf4" in run(tmp_path / "whole", 2)
    run(tmp_path / "parts", 1)
    assert "step 1" in run(tmp_path / "parts", 2)  # from where it goes on
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    factors = [
        load_file(tmp_path / run / "adapter" / "adapter_model.safetensors")
        for run in ("whole", "parts")
    ]
    assert factors[0].keys() == factors[1].keys()
    for name, value in factors[0].items():
        assert torch.equal(value, factors[1][name]), name
