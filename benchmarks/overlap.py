"""How much of the sampling is hidden behind the update: step times with and without rollout.ahead.

python benchmarks/overlap.py [--steps 12] [--prompts 32] [--figure FILE]: the quickstart's model on
one rank. First by the sampler `process` as it is; then with one that takes as long as the update
does (it waits, as for a machine elsewhere, until that time is over). A step's time is from one line
of the log to the next, without evaluations and checkpoints. The figure shows three steps of the
latter, from the logs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from concurrent.futures import Future
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from capo_ds import Callback, Event, Trainer, load_config
from capo_ds.rollout.base import Asked, Sampled, SamplerRun
from capo_ds.rollout.process import ProcessSampler
from capo_ds.rollout.rollout import Rollout
from capo_ds.rollout.waiting import in_background
from capo_ds.telemetry.metrics import read_metrics

SETTLING = 2  # steps that are not counted
SHOWN = (4, 7)  # steps of the figure, the last not among them
WAIT = ("time/sync", "time/probe", "time/rollout")
UPDATE = ("score", "log_probs", "backward", "gram", "solve", "reconstruct", "optimizer")
Line = dict[str, float]


class Paced:
    """The sampler `process`, whose rollouts take `pace` seconds each, one after the other."""

    collective = False
    shares_policy = False

    def __init__(self, run: SamplerRun, pace: float = 0.0):
        self.inner = ProcessSampler(run.policy, run.ends, run.pad, run.config)
        self.sync, self.awake, self.pace = self.inner.sync, self.inner.awake, pace
        self._last: Future[Sampled] | None = None

    def sample(self, *given: Any, **more: Any) -> Rollout:
        return self.ask(*given, **more)().rollout

    def ask(self, *given: Any, **more: Any) -> Asked:
        asked, before = self.inner.ask(*given, **more), self._last
        if given[2] == 1:  # the probe
            return asked

        def paced() -> Sampled:
            if before:
                before.result()
            began = time.perf_counter()
            rollout = asked().rollout
            time.sleep(max(0.0, self.pace - (time.perf_counter() - began)))
            return Sampled(rollout, time.perf_counter() - began)

        self._last = in_background(paced)
        return self._last.result


class Clock(Callback):
    """Seconds between the ends of steps."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, event: Event) -> None:
        self.ends.append(time.perf_counter())

    @property
    def step(self) -> float:
        """The median."""
        counted = self.ends[SETTLING:]
        return statistics.median(b - a for a, b in pairwise(counted))


def run(folder: Path, args: argparse.Namespace, ahead: int, sampler: str, pace: float = 0) -> float:
    """Seconds of a step."""
    options = f"{{pace: {pace}}}" if pace else "{}"
    settings = {
        "train.steps": args.steps, "rollout.prompts_per_step": args.prompts,
        "train.eval_every": 0, "train.save_every": 0,
        "train.log_samples_every": 0, "train.output_dir": folder, "rollout.ahead": ahead,
        "rollout.sampler": sampler, "rollout.sampler_options": options,
    }  # fmt: skip
    clock = Clock()
    config = load_config("builtin:quickstart", [f"{k}={v}" for k, v in settings.items()])
    Trainer(config, [clock]).run()
    return clock.step


def update(line: Line) -> float:
    """Seconds of what the trainer does with responses."""
    return sum(line.get(f"time/{phase}", 0.0) for phase in UPDATE)


def sampling(line: Line) -> float:
    """Seconds that the sampler took for a step's responses."""
    return line.get("rollout/seconds", line["time/rollout"])


def median(folder: Path, value: Any) -> float:
    return statistics.median(map(value, read_metrics(folder)[SETTLING:]))


def told(name: str, folder: Path, step: float) -> str:
    """A row of the table."""
    longer = max(median(folder, update), median(folder, sampling))
    hidden = median(folder, lambda line: line.get("rollout/seconds_hidden", 0.0))
    cells = [median(folder, sampling), median(folder, update), step, step / longer]
    return f"| {name} | " + " | ".join(f"{cell:.2f}" for cell in cells) + f" | {hidden:.0%} |"


def timeline(axes: Axes, folder: Path, ahead: int, title: str) -> float:
    """Draw three steps from the log, below the trainer, above the sampler; their seconds. A rollout
    starts when it is asked for, after the sync of `ahead` steps before, or when the one before it
    has ended."""
    lines, now, asked, free = read_metrics(folder), 0.0, {}, 0.0
    bars: list[tuple[float, float, int, int, bool]] = []  # start, seconds, lane, step, waits
    for step, line in enumerate(lines):
        began = now
        now += line.get("time/sync", 0.0) + (0.0 if ahead else line.get("time/probe", 0.0))
        for coming in range(step, step + ahead + 1):
            asked.setdefault(coming, now)
        start = max(asked[step], free)
        bars.append((start, sampling(line), 1, step, False))
        free = start + sampling(line)
        now = began + sum(line.get(name, 0.0) for name in WAIT)
        bars.append((began, now - began, 0, step, True))
        bars.append((now, update(line), 0, step, False))
        now += update(line)
    first = min(bar[0] for bar in bars if bar[2] == 0 and bar[3] == SHOWN[0])
    end = first + sum(
        update(line) + sum(line.get(name, 0.0) for name in WAIT) for line in lines[slice(*SHOWN)]
    )
    colours = plt.get_cmap("tab10")
    for start, seconds, lane, step, waits in bars:
        colour = "#dddddd" if waits else colours(step % 10)
        axes.barh(lane, seconds, left=start - first, height=0.6, color=colour)
        middle = start + seconds / 2 - first
        if not waits and 0 < middle < end - first:
            axes.text(middle, lane, f"{step + 1}", ha="center", va="center", color="white")
    axes.set(yticks=[0, 1], yticklabels=["trainer", "sampler"], title=title)
    return end - first


def picture(sync: Path, ahead: Path, path: Path) -> None:
    figure, axes = plt.subplots(2, 1, figsize=(9, 3.6), sharex=True)
    titles = "rollout.ahead: 0 (numbers: of the step; grey: the trainer waits)", "rollout.ahead: 1"
    seconds = [
        timeline(of, folder, number, title)
        for number, (of, folder, title) in enumerate(zip(axes, (sync, ahead), titles, strict=True))
    ]
    axes[1].set(xlabel="seconds", xlim=(0, max(seconds)))
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        place, paced = Path(name), f"{Path(__file__).resolve()}:Paced"
        for ahead in (0, 1):
            step = run(place / f"as_is_{ahead}", args, ahead, "process")
            rows.append(told(f"process, ahead {ahead}", place / f"as_is_{ahead}", step))
        pace = median(place / "as_is_0", update)
        for ahead in (0, 1, 2):
            folder = place / f"paced_{ahead}"
            step = run(folder, args, ahead, paced, pace)
            rows.append(told(f"as long as the update, ahead {ahead}", folder, step))
        if args.figure:
            picture(place / "paced_0", place / "paced_1", args.figure)
    print("| sampler | sampling, s | update, s | step, s | step / the longer | hidden |")
    print("|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
