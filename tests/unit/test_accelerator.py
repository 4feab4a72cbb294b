"""GPUs that are there and cannot be used are never passed over in silence."""

import os
import stat

import pytest
import torch

from capo_ds.config import ConfigError
from capo_ds.distributed import accelerator


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine whose torch sees no GPU; its /dev and its PATH are folders of the test."""
    for name in ("DS_ACCELERATOR", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "")  # so that what the code sets is undone
        monkeypatch.delenv(name)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for folder in ("bin", "dev"):
        (tmp_path / folder).mkdir()
    return tmp_path


def put(path, text):
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IEXEC)


def test_a_machine_without_gpus_trains_on_its_cpu(machine):
    accelerator.settle(machine / "dev")
    assert os.environ["DS_ACCELERATOR"] == "cpu"


@pytest.mark.parametrize("file", ["nvidia0", "kfd"])
def test_a_gpu_that_torch_does_not_see_is_told(machine, file, monkeypatch):
    (machine / "dev" / file).touch()
    with pytest.raises(ConfigError, match=rf"{file}.*torch sees none.*DS_ACCELERATOR=cpu"):
        accelerator.settle(machine / "dev")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    accelerator.settle(machine / "dev")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""  # torch is told the same as DeepSpeed


def test_nvidia_smi_tells_of_gpus_where_no_device_file_does(machine):
    put(machine / "bin" / "nvidia-smi", "#!/bin/sh\necho 'GPU 0: NVIDIA A800 (UUID: GPU-1)'\n")
    with pytest.raises(ConfigError, match=r"lists 1 GPUs .*A800"):
        accelerator.settle(machine / "dev")
    put(machine / "bin" / "nvidia-smi", "#!/bin/sh\necho 'No devices were found'\nexit 6\n")
    accelerator.settle(machine / "dev")


def test_an_old_driver_is_named_with_the_one_needed(machine, monkeypatch):
    (machine / "dev" / "nvidia0").touch()
    driver = machine / "version"
    driver.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19\n")
    monkeypatch.setattr(accelerator, "DRIVER", driver)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(ConfigError, match=r"CUDA 13.0.*driver 580.65 or newer.*535.104.05"):
        accelerator.settle(machine / "dev")
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ConfigError, match="build for CPUs"):
        accelerator.settle(machine / "dev")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES hides them"):
        accelerator.settle(machine / "dev")


@pytest.fixture
def gpus(machine, monkeypatch):
    """Called with the number of visible GPUs, of ranks here, and this one's number."""

    def make(count: int, ranks: int, rank: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
        monkeypatch.setenv("LOCAL_RANK", str(rank))

    return make


@pytest.mark.parametrize(("count", "taken"), [(1, "0"), (4, "3")])
def test_one_visible_gpu_is_this_ranks(machine, gpus, monkeypatch, count, taken):
    gpus(count, 4, 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")  # as SLURM does, for each task its own
    accelerator.settle(machine / "dev")
    assert os.environ["LOCAL_RANK"] == taken


@pytest.mark.parametrize("count", [1, 2])
def test_more_ranks_than_gpus_are_refused_on_all_ranks(machine, gpus, count):
    for rank in range(4):
        gpus(count, 4, rank)
        with pytest.raises(ConfigError, match=f"4 ranks on this machine, and {count} visible"):
            accelerator.settle(machine / "dev")
