"""What capo_ds needs of vLLM beyond its documented interface. Nothing else looks inside it.

`RELIED_ON` names every such attribute by its class; tests/unit/test_contracts.py looks for each in
the installed version, and `check` says which one is gone where it is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from capo_ds.contracts import check

if TYPE_CHECKING:
    from vllm import LLM
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.model_manager import LoRAModelManager

ADAPTER_ID = 1
SHARED_MEMORY = Path("/dev/shm")
RELIED_ON = {
    "InprocClient": ["_finalizer"],
    "WorkerLoRAManager": ["_adapter_manager", "lora_config"],
    "LoRAModelManager": [
        "model",
        "device",
        "modules",
        "packed_modules",
        "add_adapter",
        "remove_adapter",
        "activate_adapter",
    ],
    "LoRAModel": ["from_lora_tensors", "loras"],
    "PEFTHelper": ["from_dict", "validate_legal"],
    "GroupCoordinator": ["world_size", "rank_in_group", "cpu_group"],
    "_CPUSHMDistributed": ["make_group_name"],
}


def leave_process_group(llm: LLM) -> None:
    """At exit vLLM would take down torch.distributed, which belongs to the launcher."""
    client: Any = llm.llm_engine.engine_core
    check("vllm", client, RELIED_ON["InprocClient"])
    client._finalizer.detach()


@contextmanager
def threads_kept() -> Iterator[None]:
    """Around the start of an engine: vLLM's CPU worker makes torch.set_num_threads do nothing from
    then on."""
    set_num_threads, threads = torch.set_num_threads, torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads = set_num_threads
        torch.set_num_threads(threads)


@contextmanager
def memory_named(run: str) -> Iterator[None]:
    """Around the start of an engine: on CPU the ranks of one share memory under a name that vLLM
    gives alike in every run, and it does not start where a file of that name is: of a run beside
    it, or of one that was killed. In here the name has the run's in it, and it is gone once all
    ranks have found the memory by it, so that nothing is left of a run that is killed.

    run: a name that no other run has used.
    """
    if torch.cuda.is_available():
        yield
        return
    from vllm.distributed.device_communicators.cpu_communicator import _CPUSHMDistributed as shared

    check("vllm", shared, RELIED_ON["_CPUSHMDistributed"])
    name_of = shared.make_group_name

    def named(communicator: Any) -> str:
        return f"capo-{run}{name_of(communicator)}".replace("/", "")

    shared.make_group_name = staticmethod(named)
    try:
        yield
    finally:
        shared.make_group_name = staticmethod(name_of)
        for file in SHARED_MEMORY.glob(f"capo-{escape(run)}-*"):
            file.unlink(missing_ok=True)


def share_out(mine: Any) -> tuple[list[Any], int]:
    """What each rank of this rank's tensor-parallel group brings, and this rank's place there."""
    from vllm.distributed.parallel_state import get_tp_group

    group = get_tp_group()
    check("vllm", group, RELIED_ON["GroupCoordinator"])
    shares: list[Any] = [None] * group.world_size
    torch.distributed.all_gather_object(shares, mine, group.cpu_group)
    return shares, group.rank_in_group


def load_adapter(worker: Any, tensors: dict[str, Tensor], settings: dict[str, Any]) -> None:
    """Run on a vLLM worker: put the factors in the place of the ones it has, in its own dtype.

    Raises:
        ValueError: if a tensor has no place in the engine's model, or vLLM lacks a feature that
            the adapter has.
    """
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.peft_helper import PEFTHelper

    manager = worker.model_runner.lora_manager
    check("vllm", manager, RELIED_ON["WorkerLoRAManager"])
    adapters = manager._adapter_manager
    check("vllm", adapters, RELIED_ON["LoRAModelManager"])
    peft = PEFTHelper.from_dict(settings)
    peft.validate_legal(manager.lora_config)
    mapper = getattr(adapters.model, "hf_to_vllm_mapper", None)
    lora = LoRAModel.from_lora_tensors(
        ADAPTER_ID,
        tensors,
        peft,
        device=str(adapters.device),
        dtype=manager.lora_config.lora_dtype,
        weights_mapper=mapper and mapper.get_rename_mapper(),
    )
    _account_for(tensors, lora, adapters)
    adapters.remove_adapter(ADAPTER_ID)
    adapters.add_adapter(lora)
    adapters.activate_adapter(ADAPTER_ID)


def _account_for(tensors: dict[str, Tensor], lora: LoRAModel, adapters: LoRAModelManager) -> None:
    """Every tensor must be a factor of a layer of the engine, and every such layer have both."""
    places = {
        part for name in adapters.modules for part in adapters.packed_modules.get(name, [name])
    }
    homeless = sorted(lora.loras.keys() - places)
    taken = [
        factor
        for layer in lora.loras.values()
        for factor in (layer.lora_a, layer.lora_b)
        if factor is not None
    ]
    if homeless or len(taken) != len(tensors) or len(taken) != 2 * len(lora.loras):
        raise ValueError(
            f"vLLM's {type(adapters.model).__name__} has a place for "
            f"{len(taken) - 2 * len(homeless)} of the adapter's {len(tensors)} tensors; without "
            f"one: {', '.join(homeless) or 'a layer that lacks one of its two factors'}. Remove "
            "these layers from model.lora_targets, or set rollout.sampler to hf"
        )
