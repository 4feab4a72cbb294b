from pathlib import Path

import pytest

from tests.conftest import launch

SCRIPT = Path(__file__).with_name("collectives.py")


@pytest.mark.parametrize(
    ("launcher", "ranks"),
    [("forked", 1), ("forked", 4), ("deepspeed", 2), ("torchrun", 2), ("mpirun", 2)],
)
def test_collectives(launcher, ranks):
    result = launch(ranks, SCRIPT, launcher=launcher)
    assert result.stdout.count("collectives are sound") == ranks
