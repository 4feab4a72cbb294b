"""What capo_ds relies on in other libraries beyond their documented interfaces is there still.

An upgrade that takes something away fails here, and the message names it.
"""

from pathlib import Path

import deepspeed.ops
import pytest
from deepspeed.runtime.zero import parameter_offload

from capo_ds.config import ConfigError, parse_config
from capo_ds.contracts import check
from capo_ds.distributed import zero
from capo_ds.distributed.engine import CapoEngine
from capo_ds.models import load_policy


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
        offload = engine.optimizer.parameter_offload
        check("deepspeed", offload, zero.RELIED_ON["parameter_offload"])
        check("deepspeed", next(policy.parameters()), zero.RELIED_ON["parameter at ZeRO 3"])


def test_deepspeeds_modules() -> None:
    assert isinstance(parameter_offload.FWD_MODULE_STACK, list)
    assert "deepspeed_shm_comm" in deepspeed.ops.__compatible_ops__


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ConfigError, match=r"deepspeed [\d.]+: its Zero has no _gone, which"):
        check("deepspeed", zero.Zero, ["whole", "_gone"])
