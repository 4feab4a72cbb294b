"""Signs that a run is coming apart, a learning rate too high most often, told while it goes on.

Each is of the mean over `WINDOW` steps against what the run had before, and is told once. The
bounds parted the runs of benchmarks/study.py: docs/training.md says what they told.
"""

from __future__ import annotations

from collections import deque
from math import isfinite, nan
from pathlib import Path

from capo_ds.callbacks import Callback, Event
from capo_ds.distributed import launch
from capo_ds.telemetry.metrics import read_metrics

WINDOW = 10  # steps
FALL = 0.4  # of the reward below its best, in deviations within a group of responses
SPREAD, GONE = 2.0, 0.05  # of the entropy, as a multiple of what the first steps had
FAR = 1.0  # nats a token from the reference model
NAMES = ("reward/mean", "reward/group_std", "rollout/entropy", "loss/kl")
REMEDY = "a lower optimizer.learning_rate, or optimizer.max_grad_norm, is what mostly helps"


class Signs:
    """Of one run; `add` takes its steps in order."""

    def __init__(self) -> None:
        self._last: dict[str, deque[float]] = {name: deque(maxlen=WINDOW) for name in NAMES}
        self._first_entropy: float | None = None
        self._best, self._deviation = float("-inf"), 0.0
        self._told: set[str] = set()

    def add(self, metrics: dict[str, float]) -> list[str]:
        """What this step is the first to show, in words."""
        for name in NAMES:
            if isfinite(metrics.get(name, nan)):
                self._last[name].append(metrics[name])
        found = {"reward": self._reward(), "entropy": self._entropy(), "kl": self._kl()}
        new = {sign: words for sign, words in found.items() if words and sign not in self._told}
        self._told |= new.keys()
        return list(new.values())

    def _mean(self, name: str) -> float | None:
        values = self._last[name]
        return sum(values) / WINDOW if len(values) == WINDOW else None

    def _reward(self) -> str | None:
        reward, deviation = self._mean("reward/mean"), self._mean("reward/group_std")
        if reward is None or deviation is None:
            return None
        if reward > self._best:
            self._best, self._deviation = reward, deviation
        if self._best - reward <= FALL * self._deviation:
            return None
        return f"the reward has fallen to {reward:.3g}, from {self._best:.3g}"

    def _entropy(self) -> str | None:
        entropy = self._mean("rollout/entropy")
        if entropy is None:
            return None
        first = self._first_entropy = self._first_entropy or entropy
        if GONE * first <= entropy <= SPREAD * first:
            return None
        way = "is gone" if entropy < first else "has spread"
        return f"the entropy {way}: {entropy:.3g} nats a token, {first:.3g} in the first steps"

    def _kl(self) -> str | None:
        far = self._mean("loss/kl")
        if far is None or far <= FAR:
            return None
        return f"the model is far from its reference: loss/kl {far:.3g} nats a token"


class Watch(Callback):
    """Tells the signs of a run on rank 0, and ends it at the first where `stop` is set.

    folder: the run's, whose log has the steps of an earlier process.
    """

    def __init__(self, folder: Path, stop: bool):
        self._folder, self._stop = folder, stop
        self._signs: Signs | None = None

    def on_step_end(self, event: Event) -> None:
        signs = self._signs = self._signs or self._earlier(event.step)
        for words in signs.add(event.metrics):
            ends = "; the run ends here (train.stop_on_divergence)" if self._stop else ""
            launch.tell(f"\nwarning after step {event.step}: {words}; {REMEDY}{ends}")
            if self._stop:
                event.stop()

    def _earlier(self, step: int) -> Signs:
        signs = Signs()
        for line in read_metrics(self._folder):
            if 0 < line["step"] < step:
                signs.add(line)
        return signs
