"""Run a recipe, and print what collectives the last step made: kind to calls and bytes, as JSON;
of each collective the bytes of the rank that has most.

exchanged.py OUTPUT STEPS OVERRIDE...: of `builtin:capo-embedded`, on rank 0.
"""

import functools
import json
import sys

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from capo_ds.config import load_config
from capo_ds.cost.shape import Shape
from capo_ds.cost.step import Step
from capo_ds.distributed import comm
from capo_ds.trainer import Trainer

# The argument that `Collectives.seconds` counts.
KINDS = {
    "all_gather": lambda outputs, *_: sum(map(size, outputs)),
    "all_gather_into_tensor": lambda output, *_: size(output),
    "all_reduce": lambda tensor, *_: size(tensor),
    "reduce": lambda tensor, *_: size(tensor),
    "broadcast": lambda tensor, *_: size(tensor),
    "reduce_scatter_tensor": lambda _, whole, *__: size(whole),
    # `Collectives` counts what stays on the rank too, which `comm.all_to_all` does not hand over.
    "all_to_all_single": lambda _, sent, *__: (
        size(sent) * dist.get_world_size() // (dist.get_world_size() - 1)
    ),
}
NAMES = {
    "all_gather_into_tensor": "all_gather",
    "reduce_scatter_tensor": "reduce_scatter",
    "all_to_all_single": "all_to_all",
}
seen: list[tuple[str, int]] = []


def size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def watched(name: str) -> None:
    call = getattr(distributed_c10d, name)

    @functools.wraps(call)
    def counted(*args, **options):
        tensors = [value for value in (*args, *options.values()) if not isinstance(value, str)]
        seen.append((NAMES.get(name, name), KINDS[name](*tensors)))
        return call(*args, **options)

    for module in (distributed_c10d, dist):
        setattr(module, name, counted)


def totals(exchanges: list[tuple[str, float, int]]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for kind, count, times in exchanges:
        calls, whole = found.get(kind, (0, 0.0))
        found[kind] = [calls + times, whole + times * count]
    return found


def main() -> None:
    output, overrides = sys.argv[1], sys.argv[2:]
    comm.init()
    config = load_config("builtin:capo-embedded", [*overrides, f"train.output_dir={output}"])
    for name in KINDS:
        watched(name)
    trainer = Trainer(config)
    policy = trainer.engine.module
    shape = Shape.of(policy, config.model.dtype)
    response = config.rollout.max_new_tokens
    step = Step(config, shape, comm.world_size(), response)
    take, record = trainer._step, trainer._record
    trainer._step = lambda *args: (seen.clear(), take(*args))[1]  # type: ignore[method-assign]
    made: list[tuple[str, int]] = []

    def recorded(*args):
        result = record(*args)
        made[:] = seen
        return result

    trainer._record = recorded  # type: ignore[method-assign]
    trainer.run()
    exchanges = [one for phase in step.phases().values() for one in phase.exchanges]
    busiest = [max(calls) for calls in zip(*comm.gather(made), strict=True)]
    if comm.is_main():
        counted = totals([(kind, count, 1) for kind, count in busiest])
        print("exchanged", json.dumps({"counted": totals(exchanges), "made": counted}))
    comm.finish()


main()
