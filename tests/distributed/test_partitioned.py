"""Models of which no rank holds more than its part."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.tiny_models import build
from tests.conftest import launch

SCRIPT = Path(__file__).with_name("partitioned.py")
# Plain; tied; experts; states in buffers; towers beside it; positions of two kinds.
KINDS = ["qwen3", "gemma2", "mixtral", "mamba2", "gemma3", "phi3"]
BOTH = ["equal", "bin", "differing"]  # tied by the config, both names in the file


TIED = ("model.embed_tokens.weight", "lm_head.weight")


def build_with_both(folder: Path, kind: str) -> None:
    """A tied model whose file holds both names, or once more with another value."""
    build("gemma2", folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    first, second = TIED
    assert second not in tensors
    if kind == "bin":
        tensors[second] = tensors[first]
        file.unlink()
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        tensors[second] = tensors[first] * (2 if kind == "differing" else 1)
        save_file(tensors, file, {"format": "pt"})


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_what_is_shared_out_is_what_is_stored(ranks, tmp_path):
    for name in KINDS:
        build(name, tmp_path / name)
    for name in BOTH:
        build_with_both(tmp_path / name, name)
    folders = [str(tmp_path / name) for name in (*KINDS, *BOTH)]
    ran = launch(ranks, SCRIPT, *folders)
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found == {folder: [[]] * ranks for folder in folders}
