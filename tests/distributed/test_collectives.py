from pathlib import Path

import pytest

from tests.conftest import launch

SCRIPT = Path(__file__).with_name("collectives.py")


@pytest.mark.parametrize(
    ("launcher", "ranks"),
    [("python", 1), ("deepspeed", 2), ("torchrun", 4), ("mpirun", 2), ("mpirun", 4)],
)
def test_collectives(launcher, ranks):
    result = launch(ranks, SCRIPT, launcher=launcher)
    assert result.stdout.count("collectives are sound") == ranks
