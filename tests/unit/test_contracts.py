"""What capo_ds relies on in other libraries beyond their documented interfaces is there still.

An upgrade that takes something away fails here, and the message names it. Nothing but the doors
looks inside these libraries.
"""

import ast
import inspect
from collections.abc import Iterable, Iterator
from pathlib import Path

import deepspeed.ops
import pytest
from deepspeed.runtime.zero import parameter_offload
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from capo_ds import peft_internals
from capo_ds.config import ConfigError, parse_config
from capo_ds.contracts import check
from capo_ds.distributed import zero
from capo_ds.distributed.engine import CapoEngine
from capo_ds.models import load_policy
from capo_ds.rollout import vllm_internals
from tests.conftest import REPOSITORY

PACKAGE = REPOSITORY / "capo_ds"
DOORS = {  # and what each relies on, by class
    "distributed/zero.py": zero.RELIED_ON,
    "rollout/vllm_internals.py": vllm_internals.RELIED_ON,
    "peft_internals.py": peft_internals.RELIED_ON,
    "aggregation/torchjd_weightings.py": {"": ["_GramianWeighting", "Stateful"]},
    "architecture.py": {"": ["_setup_cache"]},  # of transformers' recurrent models
}
# Of os, sys, tuples and torch; and PEFT has a documented `add_adapter` too.
OTHERS_OWN = {
    "_exit",
    "_current_frames",
    "_asdict",
    "_dynamo",
    "_foreach_add",
    "_foreach_add_",
    "_foreach_mul",
    "add_adapter",
}


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("stage", [0, 3])
def test_deepspeed(stage: int, random_model: str, tmp_path: Path) -> None:
    config = parse_config(
        {
            "model": {"path": random_model, "lora_rank": 2},
            "deepspeed": f"ds_configs/zero{stage}.json",
            "train": {"output_dir": str(tmp_path), "report_to": ["tensorboard", "csv"]},
        }
    )
    policy = load_policy(config.model, seed=0)
    engine = CapoEngine(policy, config, optimizer_steps=1, monitor_dir=tmp_path)._engine
    check("deepspeed", engine, zero.RELIED_ON["engine"])
    check("deepspeed", engine.monitor, zero.RELIED_ON["monitor"])
    check("deepspeed", engine.monitor.tb_monitor, ["summary_writer"])
    check("deepspeed", engine.monitor.csv_monitor, zero.RELIED_ON["csv_monitor"])
    if stage == 3:
        check("deepspeed", engine.optimizer, zero.RELIED_ON["optimizer at ZeRO 3"])
        offload = engine.optimizer.parameter_offload
        check("deepspeed", offload, zero.RELIED_ON["parameter_offload"])
        check("deepspeed", next(policy.parameters()), zero.RELIED_ON["parameter at ZeRO 3"])


def test_deepspeeds_modules() -> None:
    assert isinstance(parameter_offload.FWD_MODULE_STACK, list)
    assert "deepspeed_shm_comm" in deepspeed.ops.__compatible_ops__
    assert callable(deepspeed.comm.mpi_discovery)


def test_peft(random_model: str) -> None:
    policy = load_policy(parse_config({"model": {"path": random_model, "lora_rank": 2}}).model, 0)
    check("peft", policy, peft_internals.RELIED_ON["PeftModel"])
    layer = next(module for module in policy.modules() if isinstance(module, LoraLayer))
    check("peft", layer, peft_internals.RELIED_ON["LoraLayer"])
    assert isinstance(policy, PeftModel) and layer.active_adapters == layer._active_adapter


def test_torchjd() -> None:
    torchjd = pytest.importorskip("torchjd.aggregation")
    weightings = [torchjd.UPGradWeighting, torchjd.GradVacWeighting]
    bases = {base.__name__ for weighting in weightings for base in weighting.__mro__}
    assert {"_GramianWeighting", "Stateful"} <= bases


def test_transformers() -> None:
    from transformers.models.recurrent_gemma import modeling_recurrent_gemma as recurrent

    assert hasattr(recurrent.RecurrentGemmaPreTrainedModel, "_setup_cache")


def test_vllm() -> None:
    pytest.importorskip("vllm")
    from vllm.distributed.device_communicators.cpu_communicator import _CPUSHMDistributed
    from vllm.distributed.parallel_state import GroupCoordinator, get_tp_group
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.model_manager import LoRAModelManager
    from vllm.lora.peft_helper import PEFTHelper
    from vllm.lora.worker_manager import WorkerLoRAManager
    from vllm.v1.engine.core_client import InprocClient

    assert callable(get_tp_group)
    kinds = (InprocClient, WorkerLoRAManager, LoRAModelManager, LoRAModel, PEFTHelper)
    kinds += (GroupCoordinator, _CPUSHMDistributed)
    for kind in kinds:
        missing = list(not_set_by(kind, vllm_internals.RELIED_ON[kind.__name__]))
        assert not missing, f"vLLM's {kind.__name__} has no {', '.join(missing)}"
    assert {kind.__name__ for kind in kinds} == {*vllm_internals.RELIED_ON}


def not_set_by(kind: type, names: Iterable[str]) -> Iterator[str]:
    """The names that objects of the class neither inherit nor are given in its own code."""
    source = "".join(inspect.getsource(base) for base in kind.__mro__[:-1])
    return (n for n in names if not hasattr(kind, n) and f"self.{n}" not in source)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ConfigError, match=r"deepspeed [\d.]+: its Zero has no _gone, which"):
        check("deepspeed", zero.Zero, ["whole", "_gone"])


def test_nothing_else_looks_inside() -> None:
    """No private attribute is read but our own, and no longer name that a door relies on and that
    is no name of ours."""
    trees = {p: ast.parse(p.read_text()) for p in PACKAGE.rglob("*.py")}
    ours = {name for tree in trees.values() for name in defined(tree)}
    behind = {n for relied in DOORS.values() for names in relied.values() for n in names}
    behind = {name for name in behind - ours - OTHERS_OWN if "_" in name}  # not `modules`
    found = []
    for path, tree in trees.items():
        if str(path.relative_to(PACKAGE)) in DOORS:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                name = node.attr
                private = name.startswith("_") and not name.endswith("__")
                if name in behind or (private and name not in ours | OTHERS_OWN):
                    found.append(f"{path}:{node.lineno}: {name}")
    assert not found, "\n".join(found)


def defined(tree: ast.AST) -> Iterator[str]:
    """Names of functions, classes, variables and attributes that a module makes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield from [node.attr] if ast.unparse(node.value) in ("self", "cls") else []
