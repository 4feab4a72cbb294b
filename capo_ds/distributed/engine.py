"""The DeepSpeed engine, fed with a gradient made outside it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from capo_ds.config import Config, ConfigError, OptimizerConfig, resolve_path
from capo_ds.distributed import comm

STAGES = (0, 1, 2, 3)
CHECKPOINTS = "checkpoints"
RANKS = "ranks"  # in a checkpoint: how many ranks saved it
DECIDED_ELSEWHERE = (
    "optimizer",
    "scheduler",
    "gradient_clipping",
    "gradient_accumulation_steps",
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "steps_per_print",
    "tensorboard",
)


class CapoEngine:
    """`deepspeed.initialize` on the policy; `apply` replaces its backward pass.

    The forward pass goes through `module`, not through the engine, whose own backward hooks
    would start a reduction of gradients that are never made.

    parameters: the LoRA factors; at ZeRO 3 empty outside `gathered`, so their `shapes` are kept.
    """

    def __init__(self, policy: nn.Module, config: Config, optimizer_steps: int, monitor_dir: Path):
        deepspeed = import_deepspeed()
        self.parameters = [p for p in policy.parameters() if p.requires_grad]
        self.shapes = [tuple(parameter.shape) for parameter in self.parameters]
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

    @property
    def lockstep(self) -> bool:
        """Whether forward and backward passes are collective: ZeRO 3 gathers weights in them, so
        all ranks must make equally many."""
        return self._stage == 3

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Inside, every rank holds all weights, and forward passes need no other rank.

        Entered and left by all ranks together; costs one gathering of the weights at ZeRO 3 and
        nothing below. Weights must not be changed inside.
        """
        if not self.lockstep:
            yield
            return
        with self._whole(list(self.module.parameters())), self._without_zero_hooks():
            yield

    @property
    def bytes_sent(self) -> int:
        """What a rank sends in one optimizer step, by the formula of rings: the gradient reduced
        and the new factors (or the reduced gradient) handed round, in float32.

        ZeRO 3's gathering of weights in the passes comes on top.
        """
        ranks = comm.world_size()
        return 2 * 4 * sum(map(math.prod, self.shapes)) * (ranks - 1) // ranks

    def zeros(self) -> list[Tensor]:
        """A gradient of zeros, in the parameters' shapes."""
        return [torch.zeros(shape, device=comm.device()) for shape in self.shapes]

    def apply(self, partial_gradient: list[Tensor]) -> float:
        """One optimizer step along the *ascent* direction summed over ranks; returns its norm.

        partial_gradient: this rank's part of g~, in the parameters' shapes; the ranks' parts add
        up to g~. It enters as the gradient of the surrogate -W sum_p <p, part_p>: the engine
        averages over its W ranks, partitions, clips and steps as it does for any loss.
        Raises `PeerError` on all ranks if it is not finite.
        """
        with comm.together("gradient"):
            _check_finite(partial_gradient)
        with comm.collective("optimizer step"):
            with self._whole(self.parameters):
                surrogate = -comm.world_size() * sum(
                    (parameter.float() * part).sum()
                    for parameter, part in zip(self.parameters, partial_gradient, strict=True)
                )
                self._engine.backward(surrogate)
            norm = None
            if self._stage == 0:  # the engine tells no norm; the reduced gradient is at hand
                norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters])
            self._engine.step()
        return float(self._engine.get_global_grad_norm() if norm is None else norm)

    def _whole(self, parameters: list[nn.Parameter]) -> AbstractContextManager:
        """Inside, these parameters are whole; does nothing below ZeRO 3."""
        return import_deepspeed().zero.GatheredParameters(parameters, enabled=self.lockstep)

    @contextmanager
    def _without_zero_hooks(self) -> Iterator[None]:
        """ZeRO 3's hooks would release each module's weights after its first use, and compare
        notes between ranks at the start of each pass."""
        from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK

        offload = self._engine.optimizer.parameter_offload
        offload._remove_module_hooks()
        offload.forward_hooks, offload.backward_hooks = [], []
        try:
            yield
        finally:
            offload.setup_zero_stage3_hooks()
            FWD_MODULE_STACK.pop()  # it has put the root there once more

    def end_of_pass(self) -> None:
        """After a backward pass outside the engine: let ZeRO 3 release the first layers' weights,
        whose hooks do not fire where the inputs need no gradient."""
        if self.lockstep:
            self._engine.optimizer.parameter_offload.release_backward_leftovers()

    @property
    def learning_rate(self) -> float:
        """Of the next optimizer step."""
        return self._engine.get_lr()[0]

    def save(self, folder: Path, tag: str, state: dict[str, Any]) -> None:
        """Adapter, optimizer, schedule and `state`, under folder/checkpoints/tag (all ranks)."""
        self._engine.save_checkpoint(
            str(folder / CHECKPOINTS),
            tag,
            client_state=state,
            save_latest=False,
            exclude_frozen_parameters=True,
        )
        self.save_adapter(folder / CHECKPOINTS / tag / "adapter")
        comm.on_main("saving", lambda: self._complete(folder / CHECKPOINTS / tag))

    def save_adapter(self, folder: Path) -> None:
        """The LoRA factors in PEFT format (all ranks)."""
        with self._whole(self.parameters):
            comm.on_main("saving the adapter", lambda: self.module.save_pretrained(folder))

    def _complete(self, checkpoint: Path) -> None:
        """Name the checkpoint as the newest whole one."""
        (checkpoint / RANKS).write_text(str(comm.world_size()))
        (checkpoint.parent / "latest").write_text(checkpoint.name)

    def load(self, folder: Path) -> dict[str, Any] | None:
        """Restore the newest checkpoint under the folder; its state, or None if there is none.

        Raises:
            ConfigError: on another number of ranks than saved it.
        """
        latest = folder / CHECKPOINTS / "latest"
        # Rank 0 decides: it alone is sure to see the file that it wrote.
        tag = comm.on_main("resume", lambda: latest.read_text() if latest.exists() else None)
        if tag is None:
            return None
        ranks = comm.on_main("resume", lambda: int((latest.parent / tag / RANKS).read_text()))
        if ranks != comm.world_size():
            raise ConfigError(
                f"train.resume: {latest.parent / tag} was saved by {ranks} ranks, not "
                f"{comm.world_size()}; start as many, or choose another train.output_dir"
            )
        _, state = self._engine.load_checkpoint(str(latest.parent), tag, load_module_strict=False)
        return state


def _check_finite(gradient: list[Tensor]) -> None:
    # Stacked, so that a GPU is waited for once and not once per factor.
    if not torch.stack([torch.isfinite(part).all() for part in gradient]).all():
        raise FloatingPointError(
            "NaN or Inf in the gradient; lower optimizer.learning_rate, or find the samples with "
            "aggregator capo, which leaves them out"
        )


def import_deepspeed() -> ModuleType:
    """DeepSpeed, told not to compile its shared-memory collectives on CPU: gloo serves as well,
    and compiling takes half a minute at the first start."""
    import deepspeed

    if not torch.cuda.is_available():
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


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
        settings = json.loads(resolve_path("deepspeed", path).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ConfigError(f"deepspeed: {path} is not a readable JSON file: {error}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"deepspeed: {path} holds no JSON object")
    for key in DECIDED_ELSEWHERE:
        if key in settings:
            raise ConfigError(f"deepspeed: {path} sets {key!r}; remove it, the YAML decides that")
    for key in ("bf16", "fp16"):
        if settings.get(key, {}).get("enabled"):
            raise ConfigError(
                f"deepspeed: {path} enables {key!r}; remove it and set model.dtype: the LoRA "
                "factors and their gradient stay in float32"
            )
    stage = zero_stage(settings)
    if stage not in STAGES:
        raise ConfigError(f"deepspeed: {path} asks for ZeRO stage {stage!r}; use one of {STAGES}")
    return settings


def zero_stage(settings: dict[str, Any]) -> int:
    """ZeRO stage of a DeepSpeed JSON."""
    return settings.get("zero_optimization", {}).get("stage", 0)


def learning_rate_factor(step: int, config: OptimizerConfig, steps: int) -> float:
    """Learning rate of optimizer step `step` (from 0) as a share of the peak.

    A linear rise over `warmup_steps`, whose first step already learns; then the schedule, down to
    0 just after the last step.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    left = max(0.0, (steps - step) / max(1, steps - config.warmup_steps))
    return left if config.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * left))


def _schedule(config: OptimizerConfig, steps: int) -> Callable[[Optimizer], LambdaLR]:
    return partial(LambdaLR, lr_lambda=partial(learning_rate_factor, config=config, steps=steps))
