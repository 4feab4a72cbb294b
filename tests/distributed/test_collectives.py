from pathlib import Path

import pytest

from tests.conftest import launch

SCRIPT = Path(__file__).with_name("collectives.py")


@pytest.mark.parametrize("ranks", [1, 4])
def test_collectives(ranks):
    """By each launcher: tests/distributed/test_failures.py."""
    result = launch(ranks, SCRIPT)
    assert result.stdout.count("collectives are sound") == ranks
