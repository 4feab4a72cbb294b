"""Whose child this process was when it began: its launcher may be gone before the imports end."""

import os
from contextlib import suppress

_ancestors: list[int]


def first_ancestors() -> list[int]:
    """The numbers of the processes above this one when it began, its parent's first; where there is
    no /proc, that one alone. Once one of them is gone, its child is another's."""
    return _ancestors


def _begin() -> None:
    global _ancestors
    _ancestors = [os.getppid()]
    with suppress(OSError):  # no /proc, or one of them ends just now
        while _ancestors[-1] > 1:
            with open(f"/proc/{_ancestors[-1]}/stat", "rb") as file:
                _ancestors.append(int(file.read().rpartition(b")")[2].split()[1]))


_begin()
os.register_at_fork(after_in_child=_begin)
