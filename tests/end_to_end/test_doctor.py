"""launchers/doctor.py as a user runs it."""

import pytest

from capo_ds import doctor
from tests.conftest import REPOSITORY, launch

DOCTOR = REPOSITORY / "launchers" / "doctor.py"
LAUNCHERS = ("deepspeed", "torchrun", "mpirun")


@pytest.mark.parametrize(
    ("ranks", "launcher"),
    [
        (2, "forked"),
        pytest.param(4, "forked", marks=pytest.mark.slow),
        *(pytest.param(2, name, marks=pytest.mark.slow) for name in LAUNCHERS),
        pytest.param(4, "torchrun", marks=pytest.mark.slow),
    ],
)
def test_all_is_well(tmp_path, ranks, launcher):
    result = launch(ranks, DOCTOR, "--output", tmp_path, launcher=launcher)
    pairs = ranks * (ranks - 1) // 2
    for words in (
        "versions: python",
        f"gloo, {ranks} ranks",
        "same on all ranks: python",
        f"GB/s over {pairs} pairs of ranks",
        "shared with rank 0",
        "CAPO step: ",
    ):
        assert result.stdout.count(words) == 1
    assert "BAD" not in result.stdout and result.stdout.count("ok   ") == 10
    table = result.stdout[result.stdout.index("rank  machine") :].splitlines()
    rows = [line.split() for line in table[: ranks + 1]]
    assert [row[0] for row in rows[1:]] == [str(rank) for rank in range(ranks)]
    rates = [float(cell) for row in rows[1:] for cell in row[-(ranks - 1) :]]
    assert all(0 < rate < 1000 for rate in rates)
    assert list(tmp_path.iterdir()) == []


RECIPE = """
task: {{name: custom, path: {folder}/$RANK.jsonl, prompt_column: q, answer_column: a}}
train: {{eval_every: 0}}
"""


def test_machines_with_different_data_are_bad(tmp_path):
    for rank in range(2):
        (tmp_path / f"{rank}.jsonl").write_text(f'{{"q": "?", "a": "{rank}"}}\n')
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(folder=tmp_path))
    words = ["--config", tmp_path / "recipe.yaml", "--output", tmp_path / "runs"]
    result = launch(2, DOCTOR, *words, status=1)
    (bad,) = [line for line in result.stdout.splitlines() if line.startswith("BAD")]
    assert bad.startswith("BAD  same on all ranks: ") and "recipe is " in bad
    assert f"{tmp_path}/1.jsonl is" in bad and "bring the machines to the same state" in bad


def test_a_recipe_that_cannot_be_used_is_one_line(tmp_path):
    (tmp_path / "recipe.yaml").write_text("capo: {radios: 1}")
    result = launch(2, DOCTOR, "--config", tmp_path / "recipe.yaml", status=2)
    assert result.stderr.count("config error") == 1 and "Traceback" not in result.stderr


@pytest.mark.vllm
@pytest.mark.slow
def test_a_vllm_engine_is_started(tmp_path):
    words = ["--config", "builtin:capo-embedded", "--set", "rollout.sampler=vllm"]
    words += ["--set", "rollout.vllm_cache_gib=0.25", "--output", tmp_path]
    result = launch(2, DOCTOR, *words, launcher="deepspeed")
    assert "ok   sampler: vllm started in" in result.stdout and "BAD" not in result.stdout


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
