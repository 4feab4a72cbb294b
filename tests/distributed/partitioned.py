"""Loads models shared out among the ranks, and whole: run by test_partitioned.py.

partitioned.py FOLDER...: every rank tells, of each, the weights and buffers that differ.
"""

import json
import sys

import deepspeed
import pytest
import torch

from benchmarks.tiny_models import settings
from capo_ds.config import ConfigError
from capo_ds.distributed import comm
from capo_ds.distributed.alike import make_alike
from capo_ds.distributed.zero import is_shared_out
from capo_ds.models import load_policy, load_shared_policy

ZERO = {"zero_optimization": {"stage": 3}}


def differing(folder: str) -> list[str]:
    config = settings(folder, lora_targets="all-linear").model
    whole = load_policy(config, seed=7)
    shared = load_shared_policy(config, 7, ZERO)
    assert shared.peft_config["default"].target_modules == (
        whole.peft_config["default"].target_modules
    )
    expected = dict(whole.named_parameters(remove_duplicate=False)) | dict(whole.named_buffers())
    found = dict(shared.named_parameters(remove_duplicate=False)) | dict(shared.named_buffers())
    assert found.keys() == expected.keys()
    counts = [len(list(model.parameters())) for model in (shared, whole)]
    wrong = [] if counts[0] == counts[1] else [f"{counts} weights are tied differently"]
    for name, value in found.items():
        if isinstance(value, torch.nn.Parameter) and not value.requires_grad:
            if not is_shared_out(value) or value.numel():
                wrong.append(f"{name} is whole")
            with deepspeed.zero.GatheredParameters(value):
                same = torch.equal(value, expected[name])
        else:
            same = torch.equal(value, expected[name])
        if not same or value.dtype != expected[name].dtype:
            wrong.append(name)
    return wrong


def check_told_alike() -> None:
    """Models that differ are refused, on all ranks in the same words."""
    other = comm.rank() == comm.world_size() - 1
    with pytest.raises(ConfigError, match=r"0 has weight \[1, 2\].*has weight \[1, 3") as told:
        make_alike(torch.nn.Linear(3 if other else 2, 1))
    assert len(set(comm.gather(str(told.value)))) == 1


if __name__ == "__main__":
    comm.init()
    check_told_alike()
    found = {folder: comm.gather(differing(folder)) for folder in sys.argv[1:]}
    if comm.is_main():
        print(json.dumps(found))
    comm.finish()
