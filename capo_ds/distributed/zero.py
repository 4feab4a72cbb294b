"""What capo_ds needs of DeepSpeed beyond its documented interface. Nothing else looks inside it.

`RELIED_ON` names every such attribute; tests/unit/test_contracts.py looks for each in the installed
version, and `check` says which one is gone where an engine is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from capo_ds.contracts import check
from capo_ds.distributed import comm

MOMENTS = ("exp_avg", "exp_avg_sq")
# What an optimizer step exchanges at each stage, of all trained parameters in float32 (seen with
# 0.19: at stages 1 and 2 too the gradient is reduced on every rank).
EXCHANGED = {
    0: ("all_reduce",),
    1: ("all_reduce", "all_gather"),
    2: ("all_reduce", "all_gather"),
    3: ("reduce_scatter", "all_gather"),
}
ROUNDS = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1}  # of (W - 1) / W of them
RELIED_ON = {
    "engine": ["basic_optimizer", "lr_scheduler", "monitor", "global_steps", "global_samples"],
    "monitor": ["tb_monitor", "wandb_monitor", "comet_monitor", "csv_monitor", "enabled"],
    "csv_monitor": ["log_dir", "filenames"],
    "optimizer at ZeRO 3": ["parameter_offload"],
    "parameter_offload": [
        "_remove_module_hooks",
        "setup_zero_stage3_hooks",
        "forward_hooks",
        "backward_hooks",
        "release_backward_leftovers",
    ],
    "parameter at ZeRO 3": ["ds_numel", "ds_shape", "convert_to_zero_parameters"],
}


def import_deepspeed() -> ModuleType:
    """DeepSpeed, told not to compile its shared-memory collectives on CPU: gloo serves as well,
    and compiling takes half a minute at the first start."""
    import deepspeed

    if not torch.cuda.is_available():
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


class Zero:
    """The ZeRO of an engine: weights and hooks at stage 3, and the optimizer's state at all.

    Raises:
        ConfigError: if this version of DeepSpeed lacks an attribute of `RELIED_ON`.
    """

    def __init__(self, engine: Any, stage: int):
        self._engine, self.stage = engine, stage
        check("deepspeed", engine, RELIED_ON["engine"])
        if stage == 3:
            check("deepspeed", engine.optimizer, RELIED_ON["optimizer at ZeRO 3"])
            check("deepspeed", self._offload, RELIED_ON["parameter_offload"])

    # ---------------------------------------------------------------- weights at stage 3

    def whole(
        self, parameters: list[nn.Parameter], modifier_rank: int | None = None
    ) -> AbstractContextManager:
        """Inside, these parameters are whole; does nothing below ZeRO 3.

        modifier_rank: whose changes to them are kept.
        """
        return import_deepspeed().zero.GatheredParameters(
            parameters, modifier_rank, enabled=self.stage == 3
        )

    @contextmanager
    def without_hooks(self) -> Iterator[None]:
        """ZeRO 3's hooks would release each module's weights after its first use, and compare
        notes between ranks at the start of each pass."""
        from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK

        self._offload._remove_module_hooks()
        self._offload.forward_hooks, self._offload.backward_hooks = [], []
        try:
            yield
        finally:
            self._offload.setup_zero_stage3_hooks()
            FWD_MODULE_STACK.pop()  # it has put the root there once more

    def end_of_pass(self) -> None:
        """After a backward pass outside the engine: let ZeRO 3 release the first layers' weights,
        whose hooks do not fire where the inputs need no gradient."""
        if self.stage == 3:
            self._offload.release_backward_leftovers()

    @property
    def _offload(self) -> Any:
        return self._engine.optimizer.parameter_offload

    # ---------------------------------------------------------------- the optimizer's state

    def moment(self, parameter: nn.Parameter, name: str) -> Tensor:
        """One of Adam's `MOMENTS` of a parameter, whole (all ranks)."""
        if self.stage == 0:
            return self._adam.state[parameter][name]
        return import_deepspeed().utils.safe_get_full_optimizer_state(parameter, name)

    def set_moment(self, parameter: nn.Parameter, name: str, value: Tensor) -> None:
        """value: whole, the same on all ranks."""
        utils = import_deepspeed().utils
        if self.stage == 0:
            self._adam.state[parameter][name].copy_(value)
        elif self.stage < 3:
            utils.safe_set_full_optimizer_state(parameter, value, name)
        else:
            own = utils.safe_get_local_optimizer_state(parameter, name)
            utils.safe_set_local_optimizer_state(parameter, _shard(value, own.numel()), name)

    def set_copy(self, parameter: nn.Parameter, value: Tensor) -> None:
        """The float32 copy of a parameter that the optimizer steps on, above ZeRO 0.

        value: whole, the same on all ranks.
        """
        utils = import_deepspeed().utils
        if self.stage in (1, 2):
            utils.safe_set_full_fp32_param(parameter, value)
        elif self.stage == 3:
            own = utils.safe_get_local_fp32_param(parameter)
            utils.safe_set_local_fp32_param(parameter, _shard(value, own.numel()))

    @property
    def begun(self) -> bool:
        """Whether the engine has made a step; before, some stages have no optimizer's state."""
        return self._engine.global_steps > 0

    @property
    def place(self) -> dict[str, int]:
        """The `steps` that Adam has made, and the `schedule`'s."""
        steps = next(iter(self._adam.state.values()))["step"] if self.begun else 0
        schedule = self._engine.lr_scheduler.state_dict()
        return {"steps": int(steps), "schedule": schedule["last_epoch"]}

    def go_on_from(self, place: dict[str, int]) -> None:
        """Set all counters to a `place`; Adam must have made a step."""
        steps, schedule = place["steps"], self._engine.lr_scheduler
        for state in self._adam.state.values():
            state["step"] = torch.full_like(torch.as_tensor(state["step"]), steps)
        schedule.last_epoch = place["schedule"] - 1
        schedule.step()
        self._engine.global_steps = steps
        self._engine.global_samples = steps * self._engine.train_batch_size()

    @property
    def _adam(self) -> Optimizer:
        return self._engine.basic_optimizer


class Writers:
    """What DeepSpeed's monitor has opened of `train.report_to`.

    tensorboard: the writer, or None. wandb: whether there is a run of it. comet: the experiment, or
    None.
    """

    def __init__(self, engine: Any):
        monitor = engine.monitor
        check("deepspeed", monitor, RELIED_ON["monitor"])
        # The engine's own events (a learning rate under a tag and step of its own) stay out; ours
        # go to the writers, which have switches of their own.
        monitor.enabled = False
        self._monitor = monitor
        self.tensorboard = monitor.tb_monitor and monitor.tb_monitor.summary_writer
        self.wandb = bool(monitor.wandb_monitor)
        self.comet = monitor.comet_monitor and monitor.comet_monitor.experiment

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """To all of them."""
        self._monitor.write_events([(name, value, step) for name, value in values.items()])

    def cut_csv(self, step: int) -> None:
        """Drop what an earlier process wrote of this step and later ones; its headers stay, and
        none is written again."""
        if not (monitor := self._monitor.csv_monitor):
            return
        check("deepspeed", monitor, RELIED_ON["csv_monitor"])
        for path in Path(monitor.log_dir).glob("*.csv"):
            if not (lines := path.read_text().splitlines(keepends=True)):
                path.unlink()  # opened and never written: a full disk, or a kill
                continue
            header, *rows = lines
            whole = [row for row in rows if row.endswith("\n") and int(row.split(",")[0]) < step]
            path.write_text("".join([header, *whole]))
            monitor.filenames.append(path.stem)


def share_out(model: nn.Module, settings: dict[str, Any], device: torch.device) -> None:
    """Keep of each weight this rank's part alone, as ZeRO 3 cuts them, on its device (all ranks).

    They come from rank 0 one by one, so that no other rank, nor any device, ever holds the model
    whole: the others' may be on torch's meta device, and rank 0's stay in the files that they are
    mapped from.

    settings: DeepSpeed's JSON.
    """
    shared: dict[nn.Parameter, nn.Parameter] = {}  # tied weights are one
    for module in model.modules():
        own = module.named_parameters(recurse=False, remove_duplicate=False)
        for name, parameter in list(own):
            if parameter not in shared:
                first = next(iter(shared.values()), None)
                shared[parameter] = _shared_out(parameter, settings, device, first)
            setattr(module, name, shared[parameter])
        for name, buffer in list(module.named_buffers(recurse=False)):
            on_meta = buffer.is_meta
            whole = torch.empty_like(buffer, device=device) if on_meta else buffer.to(device)
            whole = whole.contiguous()
            comm.broadcast_tensor(whole.flatten().view(torch.uint8))
            setattr(module, name, whole)


def _shared_out(
    parameter: Any, settings: dict[str, Any], device: torch.device, first: Any
) -> nn.Parameter:
    """first: one that has been shared out before, or None."""
    if parameter.is_meta:
        empty = torch.empty_like(parameter, device=device)
        parameter = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    if first is not None:
        first.convert_to_zero_parameters(param_list=[parameter])
        return parameter
    settings = settings | {"train_micro_batch_size_per_gpu": 1}  # unused, and asked for
    alone = nn.ParameterList([parameter])
    import_deepspeed().zero.Init(module=alone, config_dict_or_path=settings)
    check("deepspeed", parameter, RELIED_ON["parameter at ZeRO 3"])
    return parameter


@contextmanager
def whole_in_passes(model: nn.Module, blocks: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, passes without gradients through a model that has been shared out, and has no engine
    yet, find their weights: those of each block while it is at work, the others throughout.

    All ranks must make equally many. Does nothing to a model that is whole.
    """
    if not any(map(is_shared_out, model.parameters())):
        yield
        return
    whole = import_deepspeed().zero.GatheredParameters
    with ExitStack() as stack:
        inside: set[nn.Parameter] = set()
        for block in blocks:
            own = [p for p in block.parameters() if is_shared_out(p)]
            inside.update(own)
            at_work = ExitStack()  # empty between passes

            def begin(*_: Any, at_work: ExitStack = at_work, own: list[Any] = own) -> None:
                at_work.enter_context(whole(own))

            def end(*_: Any, at_work: ExitStack = at_work) -> None:
                at_work.close()

            stack.enter_context(_hook(block.register_forward_pre_hook(begin)))
            stack.enter_context(_hook(block.register_forward_hook(end, always_call=True)))
        others = [p for p in model.parameters() if is_shared_out(p) and p not in inside]
        stack.enter_context(whole(others))
        yield


@contextmanager
def _hook(handle: RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def is_shared_out(parameter: nn.Parameter) -> bool:
    """Whether ZeRO 3 has taken it apart."""
    return hasattr(parameter, "ds_shape")


def whole_shape(parameter: Tensor) -> torch.Size:
    """Its shape, also where ZeRO 3 has taken it apart."""
    return getattr(parameter, "ds_shape", parameter.shape)


def rounds(stage: int) -> int:
    """How often a rank sends (W - 1) / W of the trained parameters in an optimizer step."""
    return sum(ROUNDS[kind] for kind in EXCHANGED[stage])


def parameter_count(parameter: nn.Parameter) -> int:
    """Its entries, also where ZeRO 3 has taken them apart."""
    return getattr(parameter, "ds_numel", parameter.numel())


def _shard(value: Tensor, size: int) -> Tensor:
    """This rank's part of a value, as ZeRO 3 cuts it: `size` entries a rank, the last ones padded.

    DeepSpeed's own setters of whole values fail where ranks do not divide the number of entries.
    """
    padding = size * comm.world_size() - value.numel()
    return nn.functional.pad(value.flatten(), (0, padding)).split(size)[comm.rank()]
