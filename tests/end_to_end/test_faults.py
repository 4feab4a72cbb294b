"""A run that is killed again and again ends as if nothing had happened: benchmarks/soak.py."""

import pytest

from benchmarks import soak
from capo_ds.telemetry.metrics import whole_lines
from tests.end_to_end.test_train import check_equal

KILLS, STEPS = 10, 60


@pytest.mark.slow
def test_killed_ten_times(tmp_path):
    """One rank or all, at random moments: in start-up, rollout, backward pass, step or save."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    soak.run(killed, 2, STEPS, soak.draw_kills(KILLS, STEPS, 2, seed=0))
    soak.run(whole, 2, STEPS, [])
    assert soak.differences(killed, whole) == []
    check_equal(killed, whole)
    met = list(whole_lines(killed / soak.KILLS_FILE))
    assert len(met) == KILLS
    assert any(kill["saving"] for kill in met)
    assert {kill["rank"] for kill in met} == {None, 0, 1}
    assert {f"| {name} |" for name in soak.VITALS} <= {
        " ".join(line.split()[:3]) for line in soak.growth(soak.curves(whole)).splitlines()
    }
