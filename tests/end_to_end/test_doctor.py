"""launchers/doctor.py as a user runs it."""

import pytest

from capo_ds.commands import doctor
from tests.conftest import REPOSITORY, launch

DOCTOR = REPOSITORY / "launchers" / "doctor.py"


def test_all_is_well_on_two_ranks(tmp_path):
    result = launch(2, DOCTOR, "--output", tmp_path)
    for words in ("versions: python", "gloo, 2 ranks", "shared with rank 0", "CAPO step: "):
        assert result.stdout.count(words) == 1
    assert "BAD" not in result.stdout and result.stdout.count("ok   ") == 8
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_bad(tmp_path):
    (tmp_path / "file").touch()
    result = launch(1, DOCTOR, "--output", tmp_path / "file", status=1)
    assert "BAD  output folder: " in result.stdout and "NotADirectoryError" in result.stdout
    assert "Traceback" not in result.stderr


def test_a_full_disk_is_bad(tmp_path, monkeypatch):
    assert str(tmp_path.parent) in doctor.disk(tmp_path)
    monkeypatch.setattr(doctor, "LEAST_FREE", 2**60)
    with pytest.raises(doctor.Bad, match="make room"):
        doctor.disk(tmp_path)
