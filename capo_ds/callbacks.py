"""What a caller's own code is told while a run goes on, and may ask of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from capo_ds.distributed import comm


@dataclass
class Event:
    """Something that has happened in a run.

    step: how many steps have been made; 0 in the evaluation before the first.
    metrics: by the names of docs/metrics.md.
    """

    step: int
    metrics: dict[str, float]
    stopping: bool = False

    def stop(self) -> None:
        """End the run here, as if this step were its last: with a checkpoint and the adapter."""
        self.stopping = True


class Callback:
    """Base of a caller's own: it overrides what it wants to hear of. Called on rank 0.

    What it raises ends the run on all ranks, under its name.
    """

    def on_step_end(self, event: Event) -> None:
        """After each step, once it is logged; the metrics are the line of the log."""

    def on_evaluation_end(self, event: Event) -> None:
        """After each evaluation, with its metrics, before the end of its step."""


class Callbacks:
    """All of a run; every method is called on all ranks together.

    stopping: one of them has asked for the end.
    """

    def __init__(self, callbacks: Sequence[Callback]):
        self._callbacks = callbacks
        self._any = comm.max_over_ranks(len(callbacks)) > 0  # a script may give rank 0 alone some
        self.stopping = False

    def step_end(self, step: int, metrics: dict[str, float]) -> None:
        self._tell("on_step_end", step, metrics)

    def evaluation_end(self, step: int, metrics: dict[str, float]) -> None:
        self._tell("on_evaluation_end", step, metrics)

    def _tell(self, moment: str, step: int, metrics: dict[str, float]) -> None:
        if self._any:
            asked = comm.on_main("callbacks", lambda: self._call(moment, step, metrics))
            self.stopping = self.stopping or asked

    def _call(self, moment: str, step: int, metrics: dict[str, float]) -> bool:
        """Whether one of them asks for the end."""
        stopping = False
        for callback in self._callbacks:
            event = Event(step, dict(metrics))
            try:
                getattr(callback, moment)(event)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # the caller's code may raise anything, sys.exit too
                name = f"{type(callback).__name__}.{moment}"
                raise RuntimeError(f"{name}: {type(error).__name__}: {error}") from error
            stopping = stopping or event.stopping
        return stopping
