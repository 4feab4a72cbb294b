"""Other ways to start ranks: tasks as srun starts them, and two nodes with a hostfile."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, TIMEOUT, clean_environment, free_port, launch
from tests.distributed.test_failures import MINUTE, RECIPE, since_failure
from tests.distributed.test_failures import SCRIPT as FAILURES

TRAIN = REPOSITORY / "launchers" / "train.py"
SCRIPT = Path(__file__).with_name("collectives.py")
KILLED = [str(FAILURES), "--config", str(RECIPE), "--set", "train.output_dir=killed"]


def outputs(commands: list[list[str]]) -> list[str]:
    """What these commands, run side by side, print; all must fail."""
    processes = [
        subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=clean_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for command in commands
    ]
    printed = [process.communicate(timeout=TIMEOUT)[0] for process in processes]
    assert all(process.returncode > 0 for process in processes), "\n".join(printed)
    return printed


def test_tasks_of_srun():
    """No SLURM here: three processes with the variables that srun gives to each task of a step."""
    step = {"SLURM_JOB_ID": str(free_port()), "SLURM_STEP_NUM_TASKS": "3"}
    tasks = [step | {"SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)} for task in range(3)]
    result = launch(3, SCRIPT, variables=tasks)
    assert result.stdout.count("collectives are sound") == 3


def test_srun_on_several_machines_needs_an_address():
    task = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "2"}
    task |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    recipe = REPOSITORY / "launchers" / "recipes" / "capo-embedded.yaml"
    result = launch(1, TRAIN, "--config", recipe, status=2, variables=[task])
    assert "MASTER_ADDR" in result.stderr and "slurm.sbatch" in result.stderr


def test_two_nodes_with_a_hostfile(tmp_path):
    """The deepspeed launcher started by hand on each "node", both of them this machine. The
    collectives are sound; then the last rank is killed, and no rank outlives it: the one beside it
    nor, which has another launcher, the one on the other node."""
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("node-a slots=1\nnode-b slots=2\n")
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--no_ssh"]
    address = ["--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    commands = [
        [*launcher, "--hostfile", str(hostfile), "--node_rank", str(node), *address, *KILLED]
        for node in range(2)
    ]
    printed = outputs(commands)
    assert sum(text.count("collectives are sound") for text in printed) == 3
    assert since_failure(printed[1]) < MINUTE
    assert "local_rank=1" in printed[1], printed
    assert re.search("error: .*Gram matrix", printed[0]), printed[0]


SRUN = """#!/usr/bin/env bash
echo "$@" > srun.words
trap 'touch told; exit 143' TERM
[ "$ENDS" = waits ] || exit "$ENDS"
touch waiting
while :; do sleep 0.05; done
"""
SCONTROL = """#!/usr/bin/env bash
[ "$1" = show ] && echo node-a || echo "$@" >> requeued
"""


@pytest.fixture
def job(tmp_path):
    """A place where slurm.sbatch runs with programs of ours for SLURM's; a function that starts it
    where srun `ends` with a status, or waits."""
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, ".venv/bin/activate": ""}.items():
        (file := tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(0o755)
    (tmp_path / "launchers").symlink_to(REPOSITORY / "launchers")

    def start(ends: str, **variables: str) -> subprocess.Popen:
        environment = clean_environment() | {"ENDS": ends, "SLURM_JOB_ID": "7"} | variables
        environment |= {"SLURM_JOB_NODELIST": "node-a", "SLURM_SUBMIT_DIR": str(tmp_path)}
        environment["PATH"] = f"{tmp_path}:{environment['PATH']}"
        words = ["bash", "launchers/cluster/slurm.sbatch", "recipe.yaml", "--set", "train.seed=1"]
        return subprocess.Popen(words, cwd=tmp_path, env=environment)

    return start


@pytest.mark.parametrize(
    ("ends", "before", "requeued"),
    [("0", 0, False), ("137", 0, True), ("1", 9, True), ("1", 10, False), ("2", 0, False)],
)
def test_a_job_of_slurm_that_lost_a_rank_goes_back_into_the_queue(
    job, tmp_path, ends, before, requeued
):
    status = job(ends, SLURM_RESTART_COUNT=str(before)).wait(timeout=60)
    assert status == int(ends) and (tmp_path / "requeued").exists() == requeued
    words = (tmp_path / "srun.words").read_text().split()
    assert words[-2:] == ["--set", "train.seed=1"] and "train.resume=auto" in words


def test_a_job_of_slurm_whose_time_is_up_saves_and_goes_back_into_the_queue(job, tmp_path):
    process = job("waits")
    while not (tmp_path / "waiting").exists():
        assert process.poll() is None
    process.terminate()
    assert process.wait(timeout=60) == 0
    assert (tmp_path / "told").exists()
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"


def test_the_cluster_scripts_are_valid_shell():
    for script in (REPOSITORY / "launchers" / "cluster").iterdir():
        if script.suffix in (".sh", ".sbatch", ".env"):
            subprocess.run(["bash", "-n", str(script)], check=True)
