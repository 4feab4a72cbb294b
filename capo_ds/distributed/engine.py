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
from capo_ds.telemetry import tables

STAGES = (0, 1, 2, 3)
MOMENTS = ("exp_avg", "exp_avg_sq")
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


class CapoEngine:
    """`deepspeed.initialize` on the policy; `apply` replaces its backward pass.

    The forward pass goes through `module`, not through the engine, whose own backward hooks
    would start a reduction of gradients that are never made.

    card: the README.md of adapters that are saved from now on.
    parameters: the LoRA factors; at ZeRO 3 empty outside `gathered`, so their `shapes` are kept.
    """

    def __init__(self, policy: nn.Module, config: Config, optimizer_steps: int, monitor_dir: Path):
        deepspeed = import_deepspeed()
        self.parameters = [p for p in policy.parameters() if p.requires_grad]
        self.names = [n for n, p in policy.named_parameters() if p.requires_grad]
        self.shapes = [tuple(parameter.shape) for parameter in self.parameters]
        settings = deepspeed_settings(config, monitor_dir)
        tables.prepare(config.train.report_to, monitor_dir)
        self._stage = zero_stage(settings)
        self._engine, *_ = deepspeed.initialize(
            model=policy,
            model_parameters=self.parameters,
            config=settings,
            lr_scheduler=_make_schedule(config.optimizer, optimizer_steps),
            dist_init_required=False,
        )
        self.module = self._engine.module
        self.module.eval()  # and so it stays: see `load_policy`
        self.monitor = self._engine.monitor
        # The engine's own events (a learning rate under a tag and step of its own) stay out; ours
        # go to the writers, which have switches of their own.
        self.monitor.enabled = False
        self.card = ""

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
        with self.whole(list(self.module.parameters())), self._without_zero_hooks():
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
            with self.whole(self.parameters):
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

    def whole(
        self, parameters: list[nn.Parameter], modifier_rank: int | None = None
    ) -> AbstractContextManager:
        """Inside, these parameters are whole; does nothing below ZeRO 3.

        modifier_rank: whose changes to them are kept.
        """
        return import_deepspeed().zero.GatheredParameters(
            parameters, modifier_rank, enabled=self.lockstep
        )

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

    def save_adapter(self, folder: Path) -> None:
        """The LoRA factors in PEFT format, with the card (all ranks)."""
        with self.whole(self.parameters):
            comm.on_main(
                "saving the adapter", lambda: _save_adapter(self.module, folder, self.card)
            )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Factors and moments by name, whole and on the CPU, and the optimizer's place in the run
        (JSON); the same at any ZeRO stage, on every rank (all ranks)."""
        factors = {}
        with self.whole(self.parameters):
            for name, parameter in self._named():
                factors[name] = parameter.detach().cpu().clone()
        for name, parameter in self._named():
            for moment in MOMENTS:
                factors[f"{name}.{moment}"] = self._moment(parameter, moment).cpu().clone()
        steps = next(iter(self._adam.state.values()))["step"]
        return factors, {"steps": int(steps), "schedule": self._schedule.state_dict()["last_epoch"]}

    def restore(self, factors: dict[str, Tensor], place: dict[str, Any]) -> None:
        """Take up what `state` gave, from rank 0 (all ranks); other ranks' `factors` are not read.

        Raises:
            ConfigError: on all ranks, if the factors are of another adapter.
        """
        with comm.together("resume"):
            if comm.is_main():
                self._check_factors(factors)
        self.apply(self.zeros())  # makes every stage set up its optimizer's state
        for (name, parameter), shape in zip(self._named(), self.shapes, strict=True):
            value = self._from_main(factors.get(name), shape)
            with self.whole([parameter], modifier_rank=0):
                parameter.data.copy_(value)
            self._set_optimizers_own(parameter, value, None)
            for moment in MOMENTS:
                value = self._from_main(factors.get(f"{name}.{moment}"), shape)
                self._set_optimizers_own(parameter, value, moment)
        for state in self._adam.state.values():
            state["step"] = torch.full_like(torch.as_tensor(state["step"]), place["steps"])
        self._schedule.last_epoch = place["schedule"] - 1
        self._schedule.step()
        self._engine.global_steps = place["steps"]
        self._engine.global_samples = place["steps"] * self._engine.train_batch_size()

    def _check_factors(self, factors: dict[str, Tensor]) -> None:
        for (name, _), shape in zip(self._named(), self.shapes, strict=True):
            if name not in factors or factors[name].shape != shape:
                raise ConfigError(
                    f"train.resume: the checkpoint holds no factor {name} of shape {shape}; choose "
                    "another train.output_dir"
                )

    def _from_main(self, value: Tensor | None, shape: tuple[int, int]) -> Tensor:
        if not comm.is_main():
            value = torch.empty(shape)
        value = value.to(comm.device())
        comm.broadcast_tensor(value)
        return value

    def _named(self) -> list[tuple[str, nn.Parameter]]:
        return [(n, p) for n, p in self.module.named_parameters() if p.requires_grad]

    @property
    def _adam(self) -> Optimizer:
        return self._engine.basic_optimizer

    @property
    def _schedule(self) -> LambdaLR:
        return self._engine.lr_scheduler

    def _moment(self, parameter: nn.Parameter, moment: str) -> Tensor:
        if self._stage == 0:
            return self._adam.state[parameter][moment]
        return import_deepspeed().utils.safe_get_full_optimizer_state(parameter, moment)

    @torch.no_grad()
    def _set_optimizers_own(
        self, parameter: nn.Parameter, value: Tensor, moment: str | None
    ) -> None:
        """The optimizer's moment of a factor, or (None) its own copy of the factor."""
        if self._stage == 0:
            if moment:
                self._adam.state[parameter][moment].copy_(value)
        elif self._stage < 3:
            parameter.set_full_hp_param(value, moment)
        else:  # not by its set_full_hp_param, which fails where ranks do not divide the size
            own, _ = self._engine.optimizer._get_fp32_opt_state_partition(
                parameter, release_swap_buffers=False, optim_state_key=moment
            )
            padding = own.numel() * comm.world_size() - value.numel()
            shards = nn.functional.pad(value.flatten(), (0, padding)).split(own.numel())
            own.copy_(shards[comm.rank()])


def _save_adapter(policy: nn.Module, folder: Path, card: str) -> None:
    """PEFT would write an empty form in place of a card, which takes half of its time."""
    policy.create_or_update_model_card = lambda _: None
    try:
        policy.save_pretrained(folder, selected_adapters=["default"])
    finally:
        del policy.create_or_update_model_card
    if card:
        (folder / "README.md").write_text(card, encoding="utf-8")


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
                "eps": config.optimizer.epsilon,
                "weight_decay": config.optimizer.weight_decay,
                "torch_adam": True,
            },
        },
        **monitors(config.train.report_to, monitor_dir),
    }


def monitors(names: list[str], folder: Path) -> dict[str, Any]:
    """DeepSpeed's settings of the writers that `train.report_to` names."""
    files = {"enabled": True, "output_path": str(folder)}
    known = {
        "tensorboard": files | {"job_name": "tensorboard"},
        "csv": files | {"job_name": "csv"},
        "wandb": {"enabled": True, "project": "capo_ds"},
        "comet": {"enabled": True, "samples_log_interval": 1},
    }
    return {{"csv": "csv_monitor"}.get(name, name): known[name] for name in names}


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


def _make_schedule(config: OptimizerConfig, steps: int) -> Callable[[Optimizer], LambdaLR]:
    return partial(LambdaLR, lr_lambda=partial(learning_rate_factor, config=config, steps=steps))
