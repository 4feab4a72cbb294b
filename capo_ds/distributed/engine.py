"""The DeepSpeed engine, fed with a gradient made outside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import get_scheduler

from capo_ds.config import Config, ConfigError, OptimizerConfig, resolve_path
from capo_ds.distributed import comm

SUPPORTED_STAGES = (0, 1, 2)
CHECKPOINTS = "checkpoints"


class CapoEngine:
    """`deepspeed.initialize` on the policy; `apply` replaces its backward pass.

    The forward pass goes through `module`, not through the engine, whose own backward hooks
    would start a reduction of gradients that are never made.
    """

    def __init__(self, policy: nn.Module, config: Config, optimizer_steps: int, monitor_dir: Path):
        import deepspeed

        if not torch.cuda.is_available():
            # Would be compiled at the first init on CPU (half a minute); gloo serves as well.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.parameters = [p for p in policy.parameters() if p.requires_grad]
        settings = deepspeed_settings(config, monitor_dir)
        self._stage = zero_stage(settings)
        self._engine, *_ = deepspeed.initialize(
            model=policy,
            model_parameters=self.parameters,
            config=settings,
            lr_scheduler=_schedule(config.optimizer, optimizer_steps),
            dist_init_required=False,
        )
        self.module = self._engine.module
        self.monitor = self._engine.monitor

    def apply(self, partial_gradient: list[Tensor]) -> float:
        """One optimizer step along the *ascent* direction summed over ranks; returns its norm.

        partial_gradient: this rank's part of g~, in the parameters' shapes; the ranks' parts add
        up to g~. The gradient enters as that of the surrogate -W sum_p <p, part_p>: the engine
        averages over its W ranks, partitions, clips and steps as it does for any loss.
        """
        surrogate = -comm.world_size() * sum(
            (parameter.float() * part).sum()
            for parameter, part in zip(self.parameters, partial_gradient, strict=True)
        )
        self._engine.backward(surrogate)
        # At ZeRO 0 the engine tells no norm; there the reduced gradient stands in the parameters.
        norm = torch.nn.utils.get_total_norm(p.grad for p in self.parameters if p.grad is not None)
        self._engine.step()
        return float(norm if self._stage == 0 else self._engine.get_global_grad_norm())

    @property
    def learning_rate(self) -> float:
        """Of the next optimizer step."""
        return self._engine.get_lr()[0]

    def save(self, folder: Path, tag: str, state: dict[str, Any]) -> None:
        """Adapter, optimizer, schedule and `state`, under folder/checkpoints/tag (all ranks)."""
        self._engine.save_checkpoint(
            str(folder / CHECKPOINTS), tag, client_state=state, exclude_frozen_parameters=True
        )

    def load(self, folder: Path) -> dict[str, Any] | None:
        """Restore the newest checkpoint under the folder; its state, or None if there is none."""
        if not (folder / CHECKPOINTS / "latest").exists():
            return None
        _, state = self._engine.load_checkpoint(str(folder / CHECKPOINTS), load_module_strict=False)
        return state


def deepspeed_settings(config: Config, monitor_dir: Path) -> dict[str, Any]:
    """The DeepSpeed JSON of the config, completed with what the YAML decides.

    Raises:
        ConfigError: if the file is missing, no JSON, sets what the YAML decides, or asks for a
            ZeRO stage that is not supported.
    """
    settings = read_deepspeed_json(config.deepspeed)
    return settings | {
        "train_micro_batch_size_per_gpu": 1,  # unused: batches never pass through the engine
        "gradient_accumulation_steps": 1,  # samples are accumulated before they are aggregated
        "gradient_clipping": config.optimizer.max_grad_norm,
        "steps_per_print": 2**31 - 1,
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": config.optimizer.learning_rate,
                "betas": list(config.optimizer.betas),
                "weight_decay": config.optimizer.weight_decay,
                "torch_adam": True,
            },
        },
        "tensorboard": {
            "enabled": True,
            "output_path": str(monitor_dir),
            "job_name": "tensorboard",
        },
    }


def read_deepspeed_json(path: str) -> dict[str, Any]:
    """A file of `ds_configs/`, checked. Raises `ConfigError`."""
    try:
        settings = json.loads(resolve_path(path).read_text())
    except json.JSONDecodeError as error:
        raise ConfigError(f"deepspeed: {path} is not valid JSON: {error}") from error
    for key in ("optimizer", "scheduler", "gradient_clipping", "gradient_accumulation_steps"):
        if key in settings:
            raise ConfigError(
                f"deepspeed: {path} sets {key!r}; remove it, the YAML's `optimizer` decides"
            )
    for key in ("bf16", "fp16"):
        if settings.get(key, {}).get("enabled"):
            raise ConfigError(
                f"deepspeed: {path} enables {key!r}; remove it and set model.dtype: the LoRA "
                "factors and their gradient stay in float32"
            )
    stage = zero_stage(settings)
    if stage not in SUPPORTED_STAGES:
        raise ConfigError(
            f"deepspeed: {path} asks for ZeRO stage {stage}; use one of {SUPPORTED_STAGES}"
        )
    return settings


def zero_stage(settings: dict[str, Any]) -> int:
    """ZeRO stage of a DeepSpeed JSON."""
    return settings.get("zero_optimization", {}).get("stage", 0)


def _schedule(
    config: OptimizerConfig, optimizer_steps: int
) -> Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]:
    def build(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        name = "constant_with_warmup" if config.schedule == "constant" else config.schedule
        return get_scheduler(name, optimizer, config.warmup_steps, optimizer_steps)

    return build
