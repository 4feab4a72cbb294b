"""Other ways to start ranks: tasks as srun starts them, and two nodes with a hostfile."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, TIMEOUT, clean_environment, free_port, launch

TRAIN = REPOSITORY / "launchers" / "train.py"
SCRIPT = Path(__file__).with_name("collectives.py")


def outputs(commands: list[list[str]]) -> list[str]:
    """What these commands, run side by side, print; all must succeed."""
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
    assert all(process.returncode == 0 for process in processes), "\n".join(printed)
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


@pytest.mark.parametrize("slots", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_two_nodes_with_a_hostfile(tmp_path, slots):
    """The deepspeed launcher started by hand on each "node", both of them this machine."""
    hostfile = tmp_path / "hostfile"
    hostfile.write_text(f"node-a slots={slots}\nnode-b slots={slots}\n")
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--no_ssh"]
    address = ["--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    commands = [
        [*launcher, "--hostfile", str(hostfile), "--node_rank", str(node), *address, str(SCRIPT)]
        for node in range(2)
    ]
    printed = outputs(commands)
    assert sum(text.count("collectives are sound") for text in printed) == 2 * slots


def test_the_cluster_scripts_are_valid_shell():
    for script in (REPOSITORY / "launchers" / "cluster").iterdir():
        if script.suffix in (".sh", ".sbatch", ".env"):
            subprocess.run(["bash", "-n", str(script)], check=True)
