"""Waits that end."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import TypeVar

import torch

T = TypeVar("T")
FRAMES_TOLD = 4


def in_background(function: Callable[[], T]) -> Future[T]:
    """The function's result or error, from a thread that keeps no process from ending."""
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # for the caller
            future.set_exception(error)

    Thread(target=work, name="in background", daemon=True).start()
    return future


class EngineThread:
    """The one thread that makes all calls on an engine, so that whoever waits for it can stop.

    limit: seconds that a call may take.
    """

    def __init__(self, limit: float):
        self.limit = limit
        self._calls: SimpleQueue[tuple[Future, Callable[[], object]]] = SimpleQueue()
        device = torch.cuda.current_device() if torch.cuda.is_available() else None
        # A daemon: a call that hangs must not keep the process from ending.
        self._thread = Thread(target=self._work, args=(device,), name="engine", daemon=True)
        self._thread.start()

    def call(self, what: str, function: Callable[[], T]) -> T:
        """The function's result.

        Raises:
            TimeoutError: after the limit, telling where the engine is.
            Exception: whatever the function raises.
        """
        future: Future = Future()
        self._calls.put((future, function))
        try:
            return future.result(self.limit)
        except TimeoutError as error:
            if future.done():  # the function's own
                raise
            raise TimeoutError(
                f"{what} has taken longer than rollout.timeout = {self.limit:g} s; the engine is at"
                f"\n{self._position()}"
            ) from error

    def _work(self, device: int | None) -> None:
        if device is not None:
            torch.cuda.set_device(device)  # each thread has its own
        while True:
            future, function = self._calls.get()
            try:
                future.set_result(function())
            except BaseException as error:  # one that ends a program, too, is for the caller
                future.set_exception(error)

    def _position(self) -> str:
        frame = sys._current_frames()[self._thread.ident or 0]
        return "".join(traceback.format_stack(frame)[-FRAMES_TOLD:])
