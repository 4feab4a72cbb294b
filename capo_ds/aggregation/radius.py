"""The trust-region radius C chosen in every step by what aggregates do for unseen samples."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

GRID = (0.0, 0.1, 0.25, 0.5, 1.0)  # C = 0 is g_0 itself
MEMORY = 0.9  # share of a candidate's score that stays from step to step


class RadiusChooser:
    """C from `GRID`: the best smoothed held-out alignment.

    A step's score of a candidate is the mean cosine of an aggregate of half of the prompts, made
    with that C, with the other half's own gradients (`heldout.heldout`). One step's halves are few
    samples, so scores are smoothed: s <- 0.9 s + 0.1 score, corrected for its start as in Adam.

    scores: the sums so far, one a candidate, and the number of steps in them: what a checkpoint
    keeps.
    """

    def __init__(self) -> None:
        self.scores = [0.0] * len(GRID)
        self.steps = 0

    def state(self) -> dict:
        """As JSON."""
        return {"scores": self.scores, "steps": self.steps}

    def restore(self, state: dict) -> None:
        """Take up a `state`."""
        self.scores, self.steps = list(state["scores"]), state["steps"]

    def choose(self, score: Callable[[float], float | None]) -> tuple[float, dict[str, float]]:
        """The radius of this step and metrics.

        score: the step's score of a candidate; None where no sample was held out, and then the
            scores so far decide (at first: 0.5).
        """
        found = [value for value in map(score, GRID) if value is not None]
        if len(found) == len(GRID):
            self.steps += 1
            self.scores = [
                MEMORY * old + (1 - MEMORY) * new
                for old, new in zip(self.scores, found, strict=True)
            ]
        if not self.steps:
            return 0.5, {"capo/radius": 0.5}
        smoothed = np.array(self.scores) / (1 - MEMORY**self.steps)
        radius = GRID[int(smoothed.argmax())]
        told = {f"capo/alignment_at_{c:g}": float(s) for c, s in zip(GRID, smoothed, strict=True)}
        return radius, {"capo/radius": radius} | told
