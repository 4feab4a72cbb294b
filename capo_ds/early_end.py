"""A process that ends in the midst of its run has failed, with whatever status it ends."""

from __future__ import annotations

import inspect
import os
import posix
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

FAILED = 1  # exit status


@contextmanager
def told_exits(tell: Callable[[str], None]) -> Iterator[None]:
    """Inside, an `os._exit` by code that is not ours, such as a reward function's, is told; and one
    with status 0, for which launchers would take the run as done, ends this process with 1.

    Children of a fork, such as those of a pool, end as they like. tell: is given the place.
    """
    end, own, ours = os._exit, os.getpid(), __name__.partition(".")[0]

    def told(status: int) -> NoReturn:
        frame = inspect.currentframe()
        caller = frame.f_back if frame else None
        if caller and os.getpid() == own:
            module, code = str(caller.f_globals.get("__name__")), caller.f_code
            if module.partition(".")[0] != ours:
                try:
                    tell(
                        f"os._exit({status}) was called in {code.co_filename}, line "
                        f"{caller.f_lineno}, in {code.co_name}: it ends the process in the midst "
                        "of the run; raise an error instead"
                    )
                finally:  # nobody may be there to read it
                    end(status & 0xFF or FAILED)  # the system keeps eight bits of it
        end(status)

    os._exit = posix._exit = told
    try:
        yield
    finally:
        os._exit = posix._exit = end
