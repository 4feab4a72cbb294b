"""Saves and restores an engine, by whatever ranks this is launched on: run by test_checkpoints.py.

checkpoints.py save|restore CONFIG.yaml: `save` makes two steps, saves, and makes a third; `restore`
takes up what was saved and makes the third. Each leaves the factors after it in CONFIG.<mode>.pt.
"""

import sys
from pathlib import Path

import torch

from capo_ds.config import load_config
from capo_ds.distributed import checkpoint, comm
from capo_ds.distributed.engine import CapoEngine
from capo_ds.models import load_policy, load_tokenizer
from capo_ds.trial_save import rehearse_saving
from tests.distributed.one_step import perturb, whole_parameters


def gradient(engine: CapoEngine, step: int) -> list[torch.Tensor]:
    """This rank's part of a made-up gradient of the step, the same in sum for any ranks."""
    generator = torch.Generator().manual_seed(step)
    whole = [torch.randn(shape, generator=generator) for shape in engine.shapes]
    return whole if comm.is_main() else engine.zeros()


def run(mode: str, path: Path) -> None:
    config = load_config(path)
    policy = load_policy(config.model, seed=0)
    if mode == "save":
        perturb(policy)
    engine = CapoEngine(policy, config, optimizer_steps=10, monitor_dir=path.parent)
    if mode == "save":
        before = set(path.parent.iterdir())
        rehearse_saving(path.parent, engine, load_tokenizer("builtin:tiny"), config)
        if comm.is_main():  # who alone writes
            assert set(path.parent.iterdir()) == before  # it leaves no trace
        for step in range(2):
            engine.apply(gradient(engine, step))
        checkpoint.save(path.parent, "step000002", engine, {"step": 2})
        engine.module.eval()
    else:
        assert checkpoint.load(path.parent, engine) == {"step": 2}
    rate = engine.learning_rate
    engine.apply(gradient(engine, 2))
    factors = whole_parameters(engine)
    if comm.is_main():
        torch.save({"factors": factors, "rate": rate}, path.with_suffix(f".{mode}.pt"))


if __name__ == "__main__":
    comm.init()
    arguments = [a for a in sys.argv[1:] if not a.startswith("--local_rank")]
    for argument in arguments[1:]:
        run(arguments[0], Path(argument))
    comm.finish()
