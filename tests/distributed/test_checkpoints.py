"""Checkpoints: exact, atomic, and independent of ranks and ZeRO stages."""

import shutil
from pathlib import Path

import pytest
import torch

from tests.conftest import asked_for, launch
from tests.distributed.test_step import PARTITIONED, write_config

SCRIPT = Path(__file__).with_name("checkpoints.py")
KINDS = {
    "zero0": {"zero_optimization": {"stage": 0}},
    "zero1": {"zero_optimization": {"stage": 1}},
    "zero2": {"zero_optimization": {"stage": 2}},
    "zero3": PARTITIONED,
    "offload": {
        "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
        "zero_force_ds_cpu_optimizer": False,
    },
}
OPTIMIZER = {"learning_rate": 0.01, "schedule": "linear", "warmup_steps": 1, "weight_decay": 0.1}


@pytest.fixture(scope="module")
def paths(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, random_model: str
) -> dict[str, Path]:
    """Two ranks save at every stage; two and three restore each of them at the next stage."""
    folder = tmp_path_factory.mktemp("checkpoints")
    paths = {
        kind: write_config(folder / kind, random_model, {"deepspeed": deepspeed} | changes())
        for kind, deepspeed in KINDS.items()
    }
    launch(2, SCRIPT, "save", *map(str, paths.values()))
    kinds = list(KINDS)
    others: dict[str, list[Path]] = {copy: [] for copy in asked_for(request, "copy")}
    for kind, path in paths.items():
        following = kinds[(kinds.index(kind) + 1) % len(kinds)]
        for copy, configs in others.items():
            shutil.copytree(path.parent, path.parent / copy)
            configs.append(path.parent / copy / "case.yaml")
            shutil.copy(paths[following], configs[-1])
    launch(2, SCRIPT, "restore", *map(str, [*paths.values(), *others.get("other", [])]))
    if "three" in others:
        launch(3, SCRIPT, "restore", *map(str, others["three"]))
    return paths


def changes() -> dict:
    # 3 ranks do not divide the sizes of the factors.
    return {"optimizer": OPTIMIZER, "model": {"lora_rank": 2, "lora_targets": ["q_proj"]}}


@pytest.mark.parametrize("kind", KINDS)
def test_restored_goes_on_bit_for_bit(paths, kind):
    saved = torch.load(paths[kind].with_suffix(".save.pt"))
    restored = torch.load(paths[kind].with_suffix(".restore.pt"))
    assert restored["rate"] == saved["rate"]
    for ours, expected in zip(restored["factors"], saved["factors"], strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("copy", [pytest.param("other", marks=pytest.mark.slow), "three"])
def test_another_stage_and_other_ranks_go_on_alike(paths, kind, copy):
    saved = torch.load(paths[kind].with_suffix(".save.pt"))
    restored = torch.load(paths[kind].parent / copy / "case.restore.pt")
    for ours, expected in zip(restored["factors"], saved["factors"], strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
