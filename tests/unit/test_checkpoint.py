"""Checkpoint folders: what counts as whole, what is kept, and a disk that is full."""

import json
from pathlib import Path

import pytest
import torch

from capo_ds.distributed import checkpoint, comm

pytestmark = pytest.mark.usefixtures("process_group")


class Engine:
    """Stands in for a `CapoEngine` of one factor: files are what is tested here."""

    def __init__(self, value: float):
        self.value, self.steps = torch.full((2, 3), value), 1

    def save_adapter(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "adapter_config.json").write_text("{}")

    def state(self):
        return {"factor": self.value}, {"steps": self.steps}

    def restore(self, factors, place):
        self.value, self.steps = factors["factor"], place["steps"]


def save(run: Path, step: int) -> Path:
    checkpoint.save(run, f"step{step:06d}", Engine(step), {"step": step})
    return run / checkpoint.CHECKPOINTS / f"step{step:06d}"


def load(run: Path) -> tuple[dict | None, float]:
    engine = Engine(-1.0)
    state = checkpoint.load(run, engine)
    return state, float(engine.value[0, 0])


def test_the_newest_is_taken_up(tmp_path):
    assert load(tmp_path) == (None, -1.0)
    save(tmp_path, 1)
    save(tmp_path, 12)
    assert load(tmp_path) == ({"step": 12}, 12.0)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))


@pytest.mark.parametrize("harm", [truncate, flip, Path.unlink])
@pytest.mark.parametrize("name", [checkpoint.FACTORS, checkpoint.STATE, checkpoint.MANIFEST])
def test_a_broken_one_is_told_and_passed_over(tmp_path, capsys, harm, name):
    save(tmp_path, 1)
    harm(save(tmp_path, 2) / name)
    assert load(tmp_path) == ({"step": 1}, 1.0)
    told = capsys.readouterr().out
    assert "step000002 is broken" in told and name in told
    save(tmp_path, 2)  # the run comes by there again
    assert load(tmp_path) == ({"step": 2}, 2.0)


def test_a_full_disk_leaves_the_one_before(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def full(factors, path):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(comm.PeerError, match=r"saving failed on rank 0.*No space left"):
        save(tmp_path, 2)
    assert load(tmp_path) == ({"step": 1}, 1.0)
    monkeypatch.undo()
    save(tmp_path, 2)
    assert load(tmp_path) == ({"step": 2}, 2.0)


def test_the_newest_and_the_best_are_kept(tmp_path):
    for step in range(1, 6):
        save(tmp_path, step)
    (tmp_path / checkpoint.CHECKPOINTS / "step000006.unfinished").mkdir()
    checkpoint.rotate(tmp_path, keep=2, always={"step000002"})
    left = {folder.name for folder in (tmp_path / checkpoint.CHECKPOINTS).iterdir()}
    assert left == {"step000002", "step000004", "step000005"}


def test_the_manifest_covers_every_file(tmp_path):
    folder = save(tmp_path, 1)
    named = set(json.loads((folder / checkpoint.MANIFEST).read_text()))
    assert named == {checkpoint.FACTORS, checkpoint.STATE, "adapter/adapter_config.json"}
