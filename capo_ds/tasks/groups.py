"""Groups of problems that metrics are told of apart: data sets, and levels of difficulty."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from capo_ds.tasks.base import Problem

LEVEL = "level"  # the column that holds it: of the generated task's problems, and of MATH's
MOST = 20  # more values than these are no levels


def level_of(problem: Problem) -> str:
    """As a metric's name has it; empty without one."""
    level = problem.columns.get(LEVEL)
    return "" if level is None else str(level).replace("/", "-")


def source_of(problem: Problem) -> str:
    return problem.source.replace("/", "-")


class Groups:
    """The groups among some problems: `by_source/NAME` if they are of several data sets, and
    `by_level/LEVEL` if they have levels."""

    def __init__(self, problems: Sequence[Problem]):
        sources, levels = {source_of(p) for p in problems}, {level_of(p) for p in problems}
        self._kinds: dict[str, Callable[[Problem], str]] = {}
        if len(sources) > 1:
            self._kinds["by_source"] = source_of
        if levels != {""} and len(levels) <= MOST:
            self._kinds["by_level"] = level_of

    def rows(self, problems: Sequence[Problem]) -> dict[str, list[int]]:
        """Group to the places of its problems among these."""
        rows: dict[str, list[int]] = {}
        for place, problem in enumerate(problems):
            for kind, label in self._kinds.items():
                if name := label(problem):
                    rows.setdefault(f"{kind}/{name}", []).append(place)
        return rows
