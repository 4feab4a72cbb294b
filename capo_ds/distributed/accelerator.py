"""GPU or CPU: decided once, before CUDA starts, and never in silence."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import torch

from capo_ds.config import ConfigError
from capo_ds.distributed.launch import ranks_here

CHOICE = "DS_ACCELERATOR"  # DeepSpeed's own variable
VISIBLE = "CUDA_VISIBLE_DEVICES"
DEVICE_FILES = ("nvidia[0-9]*", "kfd")  # in /dev: NVIDIA's GPUs, AMD's
DRIVER = Path("/proc/driver/nvidia/version")
# The oldest driver that runs binaries of a CUDA major version (NVIDIA, "CUDA compatibility").
OLDEST_DRIVER = {"11": "450.80", "12": "525.60", "13": "580.65"}
LISTING = 20  # seconds that nvidia-smi may take


def settle(devices: Path = Path("/dev")) -> None:
    """Train on GPUs, or on the CPU where there are none or `DS_ACCELERATOR=cpu` says so.

    With one GPU visible to each task (SLURM's --gpus-per-task), it is this rank's, number 0.

    Raises:
        ConfigError: GPUs are there that torch cannot use, or fewer than the ranks of the machine.
    """
    if os.environ.get(CHOICE) == "cpu":
        os.environ[VISIBLE] = ""  # so that torch and DeepSpeed are of one mind
        return
    if not torch.cuda.is_available():
        if seen := _gpus(devices):
            raise ConfigError(
                f"{seen}, but torch sees none: {_why()}, or {CHOICE}=cpu to train "
                "on the CPU all the same"
            )
        os.environ[CHOICE] = "cpu"  # DeepSpeed would look for others first, with a warning per rank
        return
    count, ranks = torch.cuda.device_count(), ranks_here()
    own = count == 1 and os.environ.get(VISIBLE)  # each task may see another one
    if ranks > count and not own:  # told by every rank, since only the first is heard
        raise ConfigError(
            f"{ranks} ranks on this machine, and {count} visible GPUs: start one rank a GPU "
            f"(deepspeed --num_gpus {count}), or make more visible with {VISIBLE}"
        )
    if count == 1:
        os.environ["LOCAL_RANK"] = "0"


def _gpus(devices: Path) -> str:
    """What tells of GPUs on this machine; empty if nothing does."""
    if files := sorted(str(path) for name in DEVICE_FILES for path in devices.glob(name)):
        return f"this machine has GPUs ({', '.join(files[:2])})"
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=LISTING
        ).stdout.splitlines()
    except (OSError, subprocess.TimeoutExpired):
        return ""
    gpus = [line for line in listed if line.startswith("GPU ")]
    return f"nvidia-smi lists {len(gpus)} GPUs ({gpus[0]})" if gpus else ""


def _why() -> str:
    """The remedy for GPUs that torch does not see."""
    cuda = torch.version.cuda
    if cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} is a build for CPUs; install one for CUDA"
    if os.environ.get(VISIBLE) in ("", "-1"):
        return f"{VISIBLE} hides them; set it to their numbers, or ask the scheduler for GPUs"
    oldest = OLDEST_DRIVER.get(str(cuda).partition(".")[0])
    needed = f" {oldest} or newer" if oldest else ""
    found = re.search(r"Module\s+([\d.]+)", DRIVER.read_text()) if DRIVER.exists() else None
    here = f"; this one is {found[1]}" if found else ""
    return f"torch is built for CUDA {cuda}, which needs driver{needed}{here}; install one"
