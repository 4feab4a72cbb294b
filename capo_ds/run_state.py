"""Where a run stands: the steps it has made, and the accuracies it has measured."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from capo_ds.config import Config
from capo_ds.contents import Contents, changes, contents
from capo_ds.distributed import checkpoint, comm
from capo_ds.distributed.engine import CapoEngine
from capo_ds.learner import Learner
from capo_ds.run_folder import FREE_ON_RESUME, check_unchanged


def checkpoint_name(step: int) -> str:
    """Of the folder of the checkpoint after so many steps."""
    return f"step{step:06d}"


@dataclass
class RunState:
    """How far a run has come.

    step: how many have been made.
    accuracy: of the first benchmark, `before` training, `latest` and `best`; None: not measured.
    best_step: after which the best was.
    contents: of the files that it started from, on rank 0.
    """

    step: int = 0
    accuracy: dict[str, float | None] = field(
        default_factory=lambda: dict.fromkeys(("before", "latest", "best"))
    )
    best_step: int = 0
    contents: Contents = field(default_factory=dict)

    def evaluated(self, step: int, accuracy: float) -> None:
        """Take in an evaluation after so many steps; that before the first is no candidate."""
        self.accuracy["latest"] = accuracy
        if step == 0:
            self.accuracy["before"] = accuracy
        elif accuracy > (self.accuracy["best"] or 0.0):
            self.accuracy["best"], self.best_step = accuracy, step

    def save(
        self,
        config: Config,
        engine: CapoEngine,
        learner: Learner,
        under_way: dict[str, Tensor],
    ) -> None:
        """A checkpoint; all else that a run needs follows from its step (all ranks).

        under_way: of responses to coming steps, see `Responses`.
        """
        folder, keep = Path(config.train.output_dir), config.train.keep_checkpoints
        state = {
            "step": self.step,
            "accuracy": self.accuracy,
            "best_step": self.best_step,
            "store": learner.store_kind,
            "radius": learner.solver.radius.state(),
            "config": config.model_dump(mode="json"),
            "contents": self.contents,
        }
        checkpoint.save(folder, checkpoint_name(self.step), engine, state, under_way)
        best = checkpoint_name(self.best_step)
        comm.on_main("removing old checkpoints", lambda: checkpoint.rotate(folder, keep, {best}))

    def under_way(self, config: Config) -> dict[str, Tensor]:
        """What the checkpoint that was taken up holds of it (all ranks)."""
        if not self.step:
            return {}
        folder = Path(config.train.output_dir) / checkpoint.CHECKPOINTS / checkpoint_name(self.step)
        return comm.on_main("resume", lambda: checkpoint.rollouts(folder))


def resumed(config: Config, engine: CapoEngine, learner: Learner) -> RunState:
    """The newest checkpoint taken up, if `train.resume` asks for it and there is one (all ranks).
    Rank 0 warns of files that hold something else than then.

    Raises:
        ConfigError: on all ranks, if it was made with other settings.
    """
    state: dict[str, Any] | None = None
    if config.train.resume == "auto":
        folder = Path(config.train.output_dir)
        state = checkpoint.load(folder, engine, partial(check_unchanged, config))
    with comm.together("reading code and data"):
        found = contents(config, FREE_ON_RESUME) if comm.is_main() else {}
    if not state:
        return RunState(contents=found)
    for line in changes(state.get("contents", {}), found, state["step"]):  # older ones have none
        print(f"warning: {line}", file=sys.stderr, flush=True)
    learner.solver.radius.restore(state["radius"])
    if config.gradients.store == "auto":  # whatever is free now: stores may round apart
        learner.store_kind = state["store"]
    return RunState(state["step"], state["accuracy"], state["best_step"], found)
