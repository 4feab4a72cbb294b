"""Tensors of the CPU that pretend to be on a GPU: what would fail or wait there, without one.

    with PretendedGPU() as gpu:
        gpu.adopt(policy)
        ...
    gpu.waits, gpu.uploads  # by the line of capo_ds that made them

A place is a mark on a tensor's storage, so views share it and autograd is as ever. A function mode
answers `.device`, moves tensors between places and marks what is made on the GPU; a dispatch mode
sees every operation below, backward passes included. It raises `MixedDevices` where an operation
gets tensors of both places, as CUDA does, and counts where the host would wait for the device
(`.item()`, `bool`, `.cpu()`, `.tolist()`, and shapes that depend on values: boolean indexing,
`nonzero`, `unique`) and where it would send it something.

Not seen: whether a kernel exists on GPUs, streams, and what DeepSpeed and NCCL do.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from capo_ds.config import Config
from capo_ds.distributed import comm
from capo_ds.distributed.engine import CapoEngine
from capo_ds.gradients import sketch

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
EITHER = None  # made inside an operation, by autograd: it would be made where it is needed
SOURCES = (str(Path(comm.__file__).parents[1]), "benchmarks")
WAITING = {  # operations whose result's shape, or value on the host, depends on values
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "aten::unique_dim_consecutive",
    "aten::equal",
    "aten::bincount",
}
CROSSING = {"aten::copy_", "aten::_to_copy", "aten::set_"}  # between places
INDEXING = {"aten::index", "aten::index_put_", "aten::index_put", "aten::_index_put_impl_"}


UNNEEDED = ("Stream", "current_stream", "stream", "synchronize", "reset_peak_memory_stats")
COUNTS, MEMORY = ("max_memory_allocated", "memory_reserved"), 1 << 34


class MixedDevices(RuntimeError):
    """An operation got tensors of both places."""


def place(tensor: Tensor) -> torch.device | None:
    storage = tensor.untyped_storage()
    return getattr(storage, "place", storage.device)


def put(tensor: Tensor, where: torch.device | None) -> Tensor:
    tensor.untyped_storage().place = where
    return tensor


class PretendedGPU:
    """Inside, tensors may be on `cuda:0`, which `comm.device()` is.

    waits, uploads: how often the host waited for the device, or sent it something, by the line of
    this project that made it.
    """

    def __init__(self) -> None:
        self.waits: Counter[str] = Counter()
        self.uploads: Counter[str] = Counter()

    def __enter__(self) -> PretendedGPU:
        self._modes = [_Operations(self), _Functions(self)]
        run_backward = torch.autograd._engine_run_backward

        def with_functions(*args: Any, **kwargs: Any) -> Any:
            with self._modes[1]:  # taken off while torch.autograd.grad itself is handled
                return run_backward(*args, **kwargs)

        self._patches = [
            patch.object(torch.autograd, "_engine_run_backward", with_functions),
            patch.object(comm, "device", lambda: GPU),
            patch.object(sketch, "_fused", lambda _: None),  # kernels want a real one
            *(patch.object(torch.cuda, name, MagicMock()) for name in UNNEEDED),
            *(patch.object(torch.cuda, name, lambda *_: MEMORY) for name in COUNTS),
            patch.object(torch.cuda, "mem_get_info", lambda *_: (MEMORY, MEMORY)),
            patch.object(Tensor, "record_stream", lambda *_: None, create=True),
        ]
        for each in [*self._patches, *self._modes]:
            each.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for each in reversed([*self._patches, *self._modes]):
            each.__exit__(*error)

    def adopt(self, module: nn.Module) -> None:
        """All of its weights are on the GPU."""
        for tensor in [*module.parameters(), *module.buffers()]:
            put(tensor, GPU)

    @contextmanager
    def counting(self) -> Iterator[tuple[Counter[str], Counter[str]]]:
        """What comes to `waits` and `uploads` inside."""
        before = self.waits.copy(), self.uploads.copy()
        waits, uploads = Counter[str](), Counter[str]()
        yield waits, uploads
        waits.update(self.waits - before[0])
        uploads.update(self.uploads - before[1])

    def wait(self, what: str) -> None:
        self.waits[f"{_line()} {what}"] += 1

    def upload(self, what: str) -> None:
        self.uploads[f"{_line()} {what}"] += 1

    def move(self, tensor: Tensor, where: torch.device | None, dtype: Any = None) -> Tensor:
        """`Tensor.to`."""
        dtype, there = dtype or tensor.dtype, place(tensor)
        if where is None or where.type == (there or where).type:
            return tensor.to(dtype)
        if "meta" in (where.type, there and there.type):
            return tensor.to(where, dtype)
        self.wait("to the CPU") if where.type == "cpu" else self.upload("to")
        return put(tensor.to(dtype, copy=True), CPU if where.type == "cpu" else GPU)


def _line() -> str:
    """The innermost line of this project's code that is being run."""
    frame = sys._getframe()
    while frame is not None:
        file = frame.f_code.co_filename
        if any(source in file for source in SOURCES):
            return f"{Path(file).name}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


class PretendedEngine(CapoEngine):
    """Without DeepSpeed, which would be on the CPU: it goes back through its loss, and makes no
    step."""

    def __init__(self, policy: PeftModel, config: Config, optimizer_steps: int, monitor_dir: Path):
        self.parameters = [p for p in policy.parameters() if p.requires_grad]
        self.names = [name for name, p in policy.named_parameters() if p.requires_grad]
        self.shapes = [tuple(parameter.shape) for parameter in self.parameters]
        self.module, self.card = policy.eval(), ""
        self._zero = MagicMock(stage=0, whole=lambda *_: nullcontext())
        self._engine = MagicMock(get_lr=lambda: [1e-3], backward=lambda loss: loss.backward())


class _Functions(TorchFunctionMode):
    def __init__(self, gpu: PretendedGPU):
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name == "__get__" and isinstance(args[0], Tensor):
            return self._get(func, args[0])
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if first is not None:
            where = place(first)
            if name == "to":
                device, dtype = _target(args[1:], kwargs)
                return self.gpu.move(first, device, dtype)
            if name in ("cpu", "cuda"):
                return self.gpu.move(first, CPU if name == "cpu" else GPU)
            if where == GPU and name in ("numpy", "__array__", "pin_memory"):
                raise TypeError(f"can't convert a CUDA tensor: {name}")
            if where == GPU and name in ("tolist", "__reduce_ex__"):
                self.gpu.wait(name)
        return self._made(func, name, args, kwargs)

    def _get(self, func: Any, tensor: Tensor) -> Any:
        owner = getattr(func, "__self__", None)
        if owner is Tensor.device or owner is torch._C.TensorBase.device:
            return place(tensor) or CPU
        if owner is torch._C.TensorBase.is_cuda:
            return place(tensor) == GPU
        if owner is torch._C.TensorBase.is_cpu:
            return place(tensor) != GPU
        return func(tensor)

    def _made(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        """Of functions that make tensors: on the device that they are told."""
        kwargs.pop("pin_memory", None)
        given = kwargs.get("device")
        device = None if given is None else torch.device(given)
        if device is not None and device.type not in ("cuda", "cpu"):  # meta: not of this world
            return func(*args, **kwargs)
        if device is not None and name in ("as_tensor", "asarray") and isinstance(args[0], Tensor):
            return self.gpu.move(args[0], device, kwargs.get("dtype"))
        if device is not None:
            kwargs["device"] = CPU  # where it really is
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            if device is not None:
                put(result, GPU if device.type == "cuda" else CPU)
                if (
                    result.numel()
                    and device.type == "cuda"
                    and name in ("tensor", "as_tensor", "asarray")
                ):
                    self.gpu.upload(name)
            elif not _tensors(args, kwargs) and place(result) is EITHER:
                put(result, CPU)
        return result


class _Operations(TorchDispatchMode):
    def __init__(self, gpu: PretendedGPU):
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, given = func._schema.name, _tensors(args, kwargs)
        where = self._place(name, args, given)
        if where == GPU:
            self._count(name, args, kwargs)
        result = func(*args, **kwargs)
        known = {id(tensor.untyped_storage()) for tensor in given}
        for tensor in _tensors(result, {}):
            if id(tensor.untyped_storage()) not in known:
                put(tensor, where)
        return result

    def _place(self, name: str, args: Any, given: list[Tensor]) -> torch.device | None:
        """Where an operation runs; raises `MixedDevices`."""
        if name.startswith("c10d::"):
            return place(given[0])
        if name in CROSSING:
            self._cross(name, args, given)
            return place(given[0])
        if name in INDEXING:
            self._index(args, given)
            return place(given[0])
        shaped = {place(tensor) for tensor in given if tensor.dim()} - {EITHER}
        flat = {place(tensor) for tensor in given if not tensor.dim()} - {EITHER}
        if len(shaped) > 1 or (shaped == {CPU} and GPU in flat):
            told = ", ".join(f"{tuple(tensor.shape)} on {place(tensor)}" for tensor in given)
            raise MixedDevices(f"{name} of {told}")
        found = shaped | flat
        return GPU if GPU in found else CPU if found else EITHER

    def _cross(self, name: str, args: Any, given: list[Tensor]) -> None:
        if name == "aten::copy_" and len(given) > 1:
            target, source = map(place, given[:2])
            if target == GPU and source == CPU:
                self.gpu.upload("copy_")
            elif target == CPU and source == GPU and not (len(args) > 2 and args[2]):
                self.gpu.wait("copy_")

    def _index(self, args: Any, given: list[Tensor]) -> None:
        indices = [index for index in args[1] if index is not None]
        for index in indices:
            if place(args[0]) == GPU and place(index) == CPU:
                self.gpu.upload("index")
            elif place(args[0]) == CPU and place(index) == GPU:
                raise MixedDevices("indices on the GPU into a tensor on the CPU")

    def _count(self, name: str, args: Any, kwargs: dict[str, Any]) -> None:
        if name in WAITING:
            self.gpu.wait(name.removeprefix("aten::"))
        elif name == "aten::repeat_interleave" and "output_size" not in kwargs:
            self.gpu.wait("repeat_interleave")
        elif name in INDEXING:
            masks = any(i is not None and i.dtype == torch.bool for i in args[1])
            # One value to a mask's places is a fill, which needs no list of them.
            if masks and not (name != "aten::index" and args[2].numel() == 1):
                self.gpu.wait("mask")


def _tensors(args: Any, kwargs: Any) -> list[Tensor]:
    return [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]


def _target(args: Any, kwargs: dict[str, Any]) -> tuple[torch.device | None, Any]:
    """Device and dtype that `Tensor.to` is given, in whatever way."""
    other = kwargs.get("other", args[0] if args else None)
    if isinstance(other, Tensor):
        return place(other), other.dtype
    device, dtype = kwargs.get("device"), kwargs.get("dtype")
    for value in args:
        if isinstance(value, torch.dtype):
            dtype = value
        elif isinstance(value, str | int | torch.device) and not isinstance(value, bool):
            device = value
    return None if device is None else torch.device(device), dtype
