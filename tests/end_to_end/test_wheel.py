"""A wheel, installed and used where the repository is not."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, clean_environment

pytestmark = pytest.mark.slow
SHORT = ("train.steps=1", "train.eval_every=0", "rollout.prompts_per_step=4")
FORECAST = ("--dry-run", "--nodes", "2", "--cluster", "builtin:h100")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the wheel is unpacked in; what it needs comes from the tests' environment."""
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"
    listed = subprocess.run(
        ["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    for name in filter(lambda name: (REPOSITORY / name).is_file(), listed.stdout.splitlines()):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, source / name)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(place), str(source)],
        check=True,
        capture_output=True,
    )
    wheel = next(place.glob("*.whl"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--target", str(place / "site"), str(wheel)], check=True)
    return place / "site"


def capo(site: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = clean_environment() | {"PYTHONPATH": str(site)}
    return subprocess.run(
        [sys.executable, str(site / "bin" / "capo"), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_trains_evaluates_and_plots_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    settings = [part for setting in SHORT for part in ("--set", setting)]
    for command in (
        ["train", "--config", "builtin:quickstart", *settings],
        ["train", "--config", "builtin:quickstart", *settings, "--dry-run"],
        ["train", "--config", "builtin:quickstart", *FORECAST],
        ["plot", "runs/quickstart", "--only", "phases"],
        ["report", "runs/quickstart"],
        ["evaluate", "--config", "runs/quickstart/config.yaml", "--set", "evaluation.limit=4"],
        ["doctor"],
    ):
        told = capo(installed, tmp_path, *command)
        assert told.returncode == 0, (command, told.stdout, told.stderr)
    assert (tmp_path / "runs" / "quickstart" / "adapter" / "adapter_config.json").exists()


def test_a_launcher_takes_it_as_a_module(installed: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--standalone", "-m", "capo_ds.commands.train", "--config", "builtin:quickstart"]
    command += [part for setting in SHORT for part in ("--set", setting)]
    environment = clean_environment() | {"PYTHONPATH": str(installed)}
    told = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr
    assert (tmp_path / "runs" / "quickstart" / "metrics.jsonl").exists()


def test_an_unknown_recipe_names_those_there_are(installed: Path, tmp_path: Path) -> None:
    told = capo(installed, tmp_path, "train", "--config", "builtin:nothing")
    assert told.returncode == 2
    assert "builtin:nothing" in told.stderr + told.stdout
    assert "quickstart" in told.stderr + told.stdout
    assert "Traceback" not in told.stderr


def test_the_command_lists_its_commands(installed: Path, tmp_path: Path) -> None:
    told = capo(installed, tmp_path, "--help")
    assert {"train", "evaluate", "doctor", "warmup"} <= set(told.stdout.split())
    unknown = capo(installed, tmp_path, "fly")
    assert unknown.returncode == 2
    assert "fly" in unknown.stderr


def test_the_wheel_carries_one_source(installed: Path) -> None:
    for name in ("ds_configs", "launchers/recipes"):
        shipped = {path.name for path in (installed / "capo_ds" / name).iterdir()}
        assert shipped >= {path.name for path in (REPOSITORY / name).iterdir()} - {"__pycache__"}
    assert os.path.getsize(installed / "capo_ds" / "py.typed") == 0
