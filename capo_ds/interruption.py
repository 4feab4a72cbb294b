"""Ctrl-C and SIGTERM: one line, a checkpoint where there is something to save, no traceback.

A thread hears of signals by the pipe that Python's own handler writes to, also while the main
thread waits inside a collective or a long kernel, where a handler in Python would not run.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import TracebackType

from capo_ds.distributed.launch import launcher, tell

INTERRUPTED = 130  # exit status, as of shells
SAME_KEY = 1.0  # seconds within which a second SIGINT is the launcher's echo of the first
STOP = 0  # byte that ends the thread; no signal has this number
_listened_to: set[int] = set()  # signals of this process


class Interruption:
    """Inside, SIGINT ends the process at once with the last word, or where `finish` is set, makes
    it note that it is `asked` to end (0 or 1), as SIGTERM then does; a second SIGINT ends it.

    last_word: what is true when the process ends, such as where it can be gone on with.
    finish: what it says when it is first asked to end, instead of ending.
    embedded: the process is another's, a notebook's: a second SIGINT is a KeyboardInterrupt,
        SIGTERM is not ours, and in a thread that gets no signals there is nothing to do.
    """

    def __init__(
        self, last_word: Callable[[], str], finish: str | None = None, embedded: bool = False
    ):
        self.asked = 0
        self._last_word, self._finish, self._embedded = last_word, finish, embedded
        self._interrupted: float | None = None
        self._pressed: float | None = None
        self._signals = (signal.SIGINT,)
        if finish and not embedded:
            self._signals += (signal.SIGTERM,)
        self._deaf = embedded and threading.current_thread() is not threading.main_thread()

    def __enter__(self) -> Interruption:
        if self._deaf:
            return self
        self._reads, writes = os.pipe()
        os.set_blocking(writes, False)
        self._writes = writes
        self._handlers = [signal.signal(number, self._handle) for number in self._signals]
        self._wakeup = signal.set_wakeup_fd(writes, warn_on_full_buffer=False)
        self._before = set(_listened_to)
        _listened_to.update(self._signals)
        self._thread = threading.Thread(target=self._listen, name="interruption", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._deaf:
            return
        signal.set_wakeup_fd(self._wakeup)
        _listened_to.intersection_update(self._before)
        for number, handler in zip(self._signals, self._handlers, strict=True):
            signal.signal(number, handler)
        os.write(self._writes, bytes([STOP]))
        self._thread.join()
        os.close(self._reads)
        os.close(self._writes)

    def _listen(self) -> None:
        while (number := os.read(self._reads, 1)[0]) != STOP:
            if number in self._signals:
                self._note(number)

    def _note(self, number: int) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and self._interrupted is None:
            self._interrupted = now
            if self._finish is None:
                self._end()
            tell(f"\n{self._finish}; Ctrl-C again ends at once")
        elif self._embedded:
            return  # the second is the main thread's: `_handle`
        elif number == signal.SIGINT and now - (self._interrupted or now) > SAME_KEY:
            self._end()
        launcher().excuse()
        self.asked = 1

    def _handle(self, number: int, _: object) -> None:
        """In the main thread, where Python comes to it: that the signal reaches the pipe, and not
        the default action, is all that is needed of it, but in another's process."""
        if self._embedded:
            now = time.monotonic()
            if self._pressed is not None and now - self._pressed > SAME_KEY:
                raise KeyboardInterrupt
            self._pressed = self._pressed or now

    def _end(self) -> None:
        """Without the interpreter's own end, in which waiting collectives would abort."""
        tell(f"\ninterrupted: {self._last_word()}")
        os._exit(INTERRUPTED)


def _in_a_child() -> None:
    """Of a fork, such as a process of a pool of a user's function: its signals are no news for the
    pipe, which is the parent's, SIGTERM ends it, and Ctrl-C is the parent's business."""
    if _listened_to:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if signal.SIGTERM in _listened_to:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


os.register_at_fork(after_in_child=_in_a_child)
