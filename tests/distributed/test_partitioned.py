"""Models of which no rank holds more than its part."""

import json
from pathlib import Path

import pytest

from benchmarks.tiny_models import build
from tests.conftest import launch

SCRIPT = Path(__file__).with_name("partitioned.py")
# Plain; tied; experts; states in buffers; towers beside it; positions of two kinds.
KINDS = ["qwen3", "gemma2", "mixtral", "mamba2", "gemma3", "phi3"]


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_what_is_shared_out_is_what_is_stored(ranks, tmp_path):
    for name in KINDS:
        build(name, tmp_path / name)
    ran = launch(ranks, SCRIPT, *[str(tmp_path / name) for name in KINDS])
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found == {str(tmp_path / name): [[]] * ranks for name in KINDS}
