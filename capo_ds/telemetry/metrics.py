"""Metrics of a run: means over ranks, phase times, and where rank 0 writes them."""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import yaml
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from capo_ds.telemetry import tables
from capo_ds.telemetry.provenance import provenance

if TYPE_CHECKING:
    from capo_ds.distributed.zero import Writers

METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"
CONFIG_FILE = "config.yaml"
STARTS_FILE = "starts.jsonl"

# TensorBoard's custom scalars: what to look at first. Tags are regular expressions.
LAYOUT = {
    "Conflict: before with g_0, after with the applied gradient": {
        f"{samples} samples": [
            "Multiline",
            [f"conflict/{samples}_before", f"conflict/{samples}_after"],
        ]
        for samples in ("all", "positive", "negative")
    },
    "Learning": {
        "reward": ["Multiline", ["reward/mean"]],
        "accuracy in training and test": ["Multiline", ["reward/accuracy", "eval/.*accuracy"]],
    },
    "Cost": {
        "seconds by phase": ["Multiline", ["time/.*"]],
        "bytes of memory": ["Multiline", ["memory/.*"]],
    },
}
SHOWN = 4  # responses of a logged step in TensorBoard
COMPARED = ("eval/accuracy", "reward/mean", "conflict/all_after")  # by TensorBoard's HPARAMS


@dataclass(frozen=True)
class Largest:
    """Of these values the largest is told, not the mean; -inf says that there is none."""

    values: Tensor

    @staticmethod
    def of(values: Tensor, mask: Tensor) -> Largest:
        """Of those under the mask."""
        return Largest(values.masked_fill(~mask, -math.inf))


@dataclass(frozen=True)
class Mean:
    """Values that have been added up already, and how many they are: a GPU's host need not wait to
    learn either."""

    total: Tensor
    count: Tensor

    @staticmethod
    def over(values: Tensor, mask: Tensor) -> Mean:
        """Of those under the mask, of the same shape."""
        return Mean(torch.where(mask, values, 0.0).sum(dtype=torch.float64), mask.sum())


# Numbers of one place, by the metric they count for.
Measured = dict[str, Tensor | float | Largest | Mean]


class Measures:
    """Means and maxima of named quantities, mergeable over ranks."""

    def __init__(self) -> None:
        # All stay on the device until `take`: reading one would wait for the device.
        self.sums: dict[str, tuple[Tensor | float, Tensor | int]] = {}
        self.maxima: dict[str, list[Tensor | float]] = {}

    def add(self, measured: Measured) -> None:
        """Take in one number, or every entry of a tensor, for each name."""
        for name, values in measured.items():
            if isinstance(values, Largest):
                if values.values.numel():
                    self._raise(name, [values.values.max()])
            elif isinstance(values, Mean):
                self._add(name, values.total, values.count)
            else:
                entries = torch.as_tensor(values, dtype=torch.float64)
                self._add(name, entries.sum(), entries.numel())

    def _raise(self, name: str, values: Sequence[Tensor | float]) -> None:
        self.maxima[name] = [*self.maxima.get(name, []), *values]

    def _add(self, name: str, total: Tensor | float, count: Tensor | int) -> None:
        known_total, known_count = self.sums.get(name, (0.0, 0))
        self.sums[name] = (known_total + total, known_count + count)

    def take(self) -> Measures:
        """What has been added since the last `take`; starts afresh."""
        taken = Measures()
        numbers = iter(_read([*chain(*self.sums.values()), *chain(*self.maxima.values())]))
        taken.sums = {name: (next(numbers), int(next(numbers))) for name in self.sums}
        for name, values in self.maxima.items():
            largest = max([next(numbers) for _ in values])
            if largest != -math.inf:
                taken.maxima[name] = [largest]
        self.sums, self.maxima = {}, {}
        return taken

    @staticmethod
    def merge(parts: list[Measures]) -> dict[str, float]:
        """Means and maxima over all parts; a name that no part has values for is left out."""
        whole = Measures()
        for part in parts:
            for name, (total, count) in part.sums.items():
                whole._add(name, total, count)
            for name, values in part.maxima.items():
                whole._raise(name, values)
        taken = whole.take()
        means = {n: float(total / count) for n, (total, count) in taken.sums.items() if count}
        return means | {name: float(largest) for name, (largest,) in taken.maxima.items()}


def _read(values: Sequence[Tensor | float]) -> list[float]:
    """Numbers, of which some are on a device: it is waited for once."""
    there = [value.double() for value in values if _on_device(value)]
    read = iter(torch.stack(there).tolist() if there else [])
    return [next(read) if _on_device(value) else float(value) for value in values]


def _on_device(value: Tensor | float) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.device.type != "cpu"


class PhaseTimer:
    """Seconds spent in each phase since the last `take`; a GPU's work is waited for at its end."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.seconds[phase] += time.perf_counter() - start

    def take(self) -> dict[str, float]:
        """The times as `time/<phase>`; starts afresh."""
        taken = {f"time/{phase}": seconds for phase, seconds in self.seconds.items()}
        self.seconds.clear()
        return taken


class Recorder:
    """Writes scalars to TensorBoard (through DeepSpeed's monitor) and JSONL; rank 0 only.

    first_line: lines of this step and later are dropped from the logs of an earlier run that is
    being resumed, and hidden in TensorBoard: they belong to work that its checkpoint does not hold.
    """

    def __init__(self, folder: Path, writers: Writers, first_line: int):
        self.folder, self.writers, self.first_line = folder, writers, first_line
        for name in (METRICS_FILE, SAMPLES_FILE):
            _keep_before(folder / name, first_line)
        writers.cut_csv(first_line)
        if writer := self.writers.tensorboard:
            _hide_from(writer, first_line)

    def settings(self, config: dict[str, Any]) -> None:
        """What the run is: its config, every start with the code's version, both also in
        TensorBoard as hyperparameters, and there the layout of the custom scalars."""
        (self.folder / CONFIG_FILE).write_text(yaml.safe_dump(config, sort_keys=False))
        made_by = provenance()
        start = {"first_line": self.first_line, "time": datetime.now(UTC).isoformat()}
        self._append(STARTS_FILE, start | made_by)
        if writer := self.writers.tensorboard:
            writer.add_custom_scalars(LAYOUT)
            _add_hyperparameters(writer, flat_settings(config) | made_by)
        tables.settings(self.writers, config | {"made_by": made_by})

    def scalars(self, step: int, metrics: dict[str, float]) -> None:
        self.writers.scalars(step, metrics)
        self._append(METRICS_FILE, {"step": step, **metrics})

    def samples(self, step: int, samples: list[dict[str, Any]]) -> None:
        """All responses of a step to the log; one to each of the first prompts shown as text."""
        for sample in samples:
            self._append(SAMPLES_FILE, {"step": step, **sample})
        shown = list({sample["prompt_number"]: sample for sample in reversed(samples)}.values())
        shown = shown[::-1][:SHOWN]
        if writer := self.writers.tensorboard:
            blocks = [
                f"reward {sample['reward']:+.1f}\n\n> {sample['prompt']}\n\n{sample['completion']}"
                for sample in shown
            ]
            writer.add_text("rollout/samples", "\n\n---\n\n".join(blocks), step)
        tables.samples(self.writers, step, samples)

    def _append(self, name: str, record: dict[str, Any]) -> None:
        with open(self.folder / name, "a") as file:
            file.write(json.dumps(_in_json(record), allow_nan=False) + "\n")


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics log, in order of steps, NaN for `null`; a last one half-written
    is left out."""
    lines = whole_lines(folder / METRICS_FILE)
    return [{k: math.nan if v is None else v for k, v in line.items()} for line in lines]


def whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a log that may be being written: a last line without its end is left out."""
    with open(path, encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)


def _in_json(value: Any) -> Any:
    """JSON has no word for a number beyond all bounds, nor for none: null."""
    if isinstance(value, dict):
        return {name: _in_json(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_in_json(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def flat_settings(config: dict[str, Any]) -> dict[str, Any]:
    """`section.key` to value."""
    flat: dict[str, Any] = {}
    for section, values in config.items():
        if isinstance(values, dict):
            flat |= {f"{section}.{key}": value for key, value in values.items()}
        else:
            flat[section] = values
    return flat


def _hide_from(writer: SummaryWriter, step: int) -> None:
    """Make TensorBoard forget this step and later ones of earlier event files in the folder."""
    start = SessionLog(status=SessionLog.START)
    assert writer.file_writer
    writer.file_writer.add_event(Event(step=step, session_log=start))


def _add_hyperparameters(writer: SummaryWriter, values: dict[str, Any]) -> None:
    """For the HPARAMS tab, in the run's own event file: `add_hparams` would start another run."""
    plain = {
        name: value if isinstance(value, bool | int | float | str) else str(value)
        for name, value in values.items()
    }
    experiment, start, _ = hparams(plain, dict.fromkeys(COMPARED, 0.0))
    assert writer.file_writer
    for summary in (experiment, start):  # without the end, which is to come
        writer.file_writer.add_summary(summary)


def _keep_before(path: Path, step: int) -> None:
    """Cut a log before a step; a last line that a killed run left half-written goes too."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break
        if record["step"] < step:
            kept.append(line + "\n")
    # Replaced in one go: a crash here must not lose the log.
    whole = path.with_suffix(".tmp")
    whole.write_text("".join(kept))
    whole.replace(path)
