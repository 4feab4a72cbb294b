"""DeepSpeed's JSON: read, checked, and completed with what the YAML decides."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from capo_ds.config import Config, ConfigError, decode, resolve_path
from capo_ds.distributed import deepspeed_keys

STAGES = (0, 1, 2, 3)
DECIDED_ELSEWHERE = (
    "optimizer",
    "scheduler",
    "gradient_clipping",
    "gradient_accumulation_steps",
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "steps_per_print",
    "tensorboard",
    "wandb",
    "csv_monitor",
    "comet",
)


def deepspeed_settings(config: Config, monitor_dir: Path, trained: int) -> dict[str, Any]:
    """The DeepSpeed JSON of the config, completed with what the YAML decides.

    trained: number of parameters that are trained, which is the size of ZeRO's buckets unless the
    JSON gives them: the usual 500 million numbers take 2 GB for a gradient of a megabyte.

    Raises:
        ConfigError: if the file is missing, no JSON, sets what the YAML decides, or asks for
            what DeepSpeed or this trainer refuses.
    """
    settings = read_deepspeed_json(config.deepspeed)
    zero = settings.get("zero_optimization", {})
    given = {key: value for key, value in zero.items() if value != "auto"}  # the HF Trainer's
    buckets = {"reduce_bucket_size": trained, "allgather_bucket_size": trained}
    return settings | {
        "zero_optimization": buckets | given,
        "train_micro_batch_size_per_gpu": 1,  # unused: batches never pass through the engine
        "gradient_accumulation_steps": 1,  # samples are accumulated before they are aggregated
        "gradient_clipping": config.optimizer.max_grad_norm,
        "steps_per_print": 2**31 - 1,
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": config.optimizer.learning_rate,
                "betas": list(config.optimizer.betas),
                "eps": config.optimizer.epsilon,
                "weight_decay": config.optimizer.weight_decay,
                "torch_adam": True,
            },
        },
        **monitors(config.train.report_to, monitor_dir),
    }


def monitors(names: Sequence[str], folder: Path) -> dict[str, Any]:
    """DeepSpeed's settings of the writers that `train.report_to` names."""
    files = {"enabled": True, "output_path": str(folder)}
    known = {
        "tensorboard": files | {"job_name": "tensorboard"},
        "csv": files | {"job_name": "csv"},
        "wandb": {"enabled": True, "project": "capo_ds"},
        "comet": {"enabled": True, "samples_log_interval": 1},
    }
    return {{"csv": "csv_monitor"}.get(name, name): known[name] for name in names}


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; Python's own keeps the last of two equal keys without a word."""
    keys = [key for key, _ in pairs]
    if doubles := sorted({key for key in keys if keys.count(key) > 1}):
        raise ConfigError(f"deepspeed: {', '.join(doubles)} is there twice in the JSON; write once")
    return dict(pairs)


def read_deepspeed_json(path: str) -> dict[str, Any]:
    """A file of `ds_configs/`, checked. Raises `ConfigError`."""
    try:
        content = resolve_path("deepspeed", path).read_bytes()
        settings = json.loads(decode(content, f"deepspeed: {path}"), object_pairs_hook=_once)
    except (OSError, json.JSONDecodeError) as error:
        raise ConfigError(f"deepspeed: {path} is not a readable JSON file: {error}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"deepspeed: {path} holds no JSON object")
    for key in DECIDED_ELSEWHERE:
        if key in settings:
            raise ConfigError(f"deepspeed: {path} sets {key!r}; remove it, the YAML decides that")
    for key in ("bf16", "fp16", "zero_optimization"):
        if not isinstance(settings.get(key, {}), dict):
            raise ConfigError(
                f"deepspeed: {path}: {key!r} is {settings[key]!r}, not an object; write "
                "{...}, or leave it out"
            )
    for key in ("bf16", "fp16"):
        if settings.get(key, {}).get("enabled"):
            raise ConfigError(
                f"deepspeed: {path} enables {key!r}; remove it and set model.dtype: the LoRA "
                "factors and their gradient stay in float32"
            )
    stage = zero_stage(settings)
    if stage not in STAGES:
        raise ConfigError(f"deepspeed: {path} asks for ZeRO stage {stage!r}; use one of {STAGES}")
    if refused := deepspeed_keys.refusals(settings):
        raise ConfigError("\n".join(f"deepspeed: {path}: {told}" for told in refused))
    return settings


def ignored_lines(path: str) -> list[str]:
    """What to warn of: keys of the file that DeepSpeed passes over. Raises `ConfigError`."""
    keys = deepspeed_keys.ignored(read_deepspeed_json(path))
    return [f"deepspeed: {path}: {told}" for told in keys]


def zero_stage(settings: dict[str, Any]) -> int:
    """ZeRO stage of a DeepSpeed JSON."""
    return settings.get("zero_optimization", {}).get("stage", 0)
