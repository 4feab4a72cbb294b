"""Where in a user's own files an error happened: what is shown of it, instead of our traceback."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

_files: set[str] = set()


class PartError(RuntimeError):
    """A user's part has failed, or given what it must not; the text says all there is to say."""

    told_whole = True


@contextmanager
def as_it_was() -> Iterator[None]:
    """Inside runs a user's code, such as a reward model's, which may go to another folder, take
    Ctrl-C and SIGTERM for itself, switch gradients off for good, change the type or the device of
    new tensors, or make NumPy raise: that is undone at the end."""
    torch_before = _state_of_torch()
    folder, handlers, errors = _folder(), _handlers(), np.geterr()
    try:
        yield
    finally:
        if folder and folder != _folder():
            os.chdir(folder)
        np.seterr(**errors)
        for number, handler in _handlers().items():
            if handler is not handlers[number] and handlers[number] is not None:
                signal.signal(number, handlers[number])
        if (now := _state_of_torch()) and now != torch_before:
            import torch

            grad, dtype, device = torch_before or (True, torch.float32, torch.device("cpu"))
            torch.set_grad_enabled(grad)
            torch.set_default_dtype(dtype)
            if now[2] != device:
                torch.set_default_device(device if device.type != "cpu" else None)


def _folder() -> str | None:
    """None where it has been removed."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


def _handlers() -> dict[int, Any]:
    """Of the signals that a run ends by; empty in threads that may not set them."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}


def _state_of_torch() -> tuple[Any, Any, Any] | None:
    torch: Any = sys.modules.get("torch")
    if not hasattr(torch, "get_default_device"):  # not imported yet, or not to the end
        return None
    return torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_default_device()


def told_whole(error: BaseException | None) -> bool:
    """Whether the message of an error is all that a user needs: no traceback of ours beside it."""
    return bool(place(error)) or any(
        getattr(cause, "told_whole", False) for cause in _causes(error)
    )


def remember(file: str) -> None:
    """A file that a setting names as `file.py:NAME`; its frames are the user's."""
    _files.add(file)


def remembered() -> frozenset[str]:
    """All such files so far, resolved."""
    return frozenset(_files)


def place(error: BaseException | None) -> str:
    """The lines of the traceback from the user's first to the user's last, beginning with a line
    break; empty if the user's code had no part in it. Of an error that was raised from another, the
    first that was."""
    places = [told for cause in _causes(error) if (told := _lines(cause))]
    return places[-1] if places else ""


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, the one that it was raised from, and so on; each once."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        error = error.__cause__ or error.__context__
    return iter(seen)


def _lines(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [number for number, frame in enumerate(frames) if frame.filename in _files]
    if isinstance(error, SyntaxError) and error.filename in _files:
        return f'\n  File "{error.filename}", line {error.lineno}\n    {(error.text or "").strip()}'
    if not own:
        return ""
    return "\n" + "".join(traceback.format_list(frames[own[0] : own[-1] + 1])).rstrip()
