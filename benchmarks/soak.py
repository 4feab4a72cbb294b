"""A long run that is killed again and again, beside one that is not: are the bits the same, and is
anything growing?

python benchmarks/soak.py --steps 200 --kills 20: both runs on two ranks of this machine, what the
ranks hold (memory, threads, descriptors, children) while they go on, and a picture of it. Ends with
status 1 where the results differ, or where ranks outlive one that was killed by over a minute.
With --set rollout.sampler=process --set rollout.ahead=1 it is that of rollouts under way.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import psutil
from safetensors.torch import load_file

from capo_ds.distributed.checkpoint import CHECKPOINTS, UNFINISHED
from capo_ds.distributed.launch import free_port
from capo_ds.telemetry.metrics import METRICS_FILE, read_metrics, whole_lines

TRAIN = Path(__file__).resolve().parents[1] / "launchers" / "train.py"
SETTINGS = (
    "rollout.prompts_per_step=6", "rollout.group_size=4", "rollout.max_new_tokens=24",
    "task.test_problems=16", "train.eval_every=50", "train.save_every=5", "train.resume=auto",
)  # fmt: skip
POLL = 0.5  # seconds between two looks at the ranks
LAST_KILL = 0.7  # of the steps: so that a fast machine does not end the run before the last kill
TAIL = 100_000  # bytes that hold a line of the log
PEERS_END = 60.0  # seconds that the others may take once one has been killed
VITALS = ("resident", "threads", "descriptors", "children")
VITALS_FILE, KILLS_FILE = "vitals.jsonl", "kills.jsonl"


@dataclass
class Kill:
    """When and whom: in start-up, or once `step` is logged and the life has made a step (then in a
    save or anywhere), `delay` seconds later; a rank, or everything (None)."""

    moment: str
    step: int
    delay: float
    rank: int | None


class Life:
    """One start of a run, to its end or to a kill."""

    def __init__(self, folder: Path, ranks: int, steps: int, own: Sequence[str]):
        words = ["-m", "torch.distributed.run", "--nproc_per_node", str(ranks)]
        words += ["--master_port", str(free_port()), str(TRAIN), "--config", "builtin:quickstart"]
        settings = (*SETTINGS, *own, f"train.steps={steps}", f"train.output_dir={folder}")
        words += [part for setting in settings for part in ("--set", setting)]
        self.folder, self.count, self.began = folder, ranks, time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "output.txt", "ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, *words], stdout=output, stderr=output, start_new_session=True
            )
        self._ranks: list[psutil.Process] = []

    @property
    def step(self) -> int:
        """The last that is logged. Asked some hundred times a second: reads the log's end alone."""
        log = self.folder / METRICS_FILE
        if not log.exists():
            return 0
        with open(log, "rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL))
            lines = [line for line in file.readlines() if line.endswith(b"\n")]
        return int(json.loads(lines[-1])["step"]) if lines else 0

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def ranks(self) -> list[psutil.Process]:
        """In order, once all of them have been started; before, none."""
        if not self._ranks and self.running:
            found = {}
            for process in psutil.Process(self.process.pid).children():
                with suppress(psutil.NoSuchProcess):
                    rank = process.environ().get("RANK")  # before exec, the launcher's: none
                    if rank and str(TRAIN) in process.cmdline():
                        found[int(rank)] = process
            if len(found) == self.count:
                self._ranks = [found[rank] for rank in range(self.count)]
        return self._ranks

    def vitals(self) -> Iterator[dict[str, float]]:
        """What each rank holds now."""
        for rank, process in enumerate(self.ranks()):
            with suppress(psutil.NoSuchProcess), process.oneshot():
                yield {
                    "rank": rank,
                    "resident": process.memory_info().rss,
                    "threads": process.num_threads(),
                    "descriptors": process.num_fds(),
                    "children": len(process.children(recursive=True)),
                }

    def kill(self, rank: int | None) -> float:
        """-9 to that rank, or to all; the seconds until the others have ended too."""
        at = time.monotonic()
        if rank is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        else:
            with suppress(psutil.NoSuchProcess):
                self.ranks()[rank].kill()
        try:
            self.process.wait(PEERS_END)
            psutil.wait_procs(self._ranks, PEERS_END)
        finally:
            left = [process for process in self._ranks if process.is_running()]
            for process in left:
                process.kill()
            if self.running:
                os.killpg(self.process.pid, signal.SIGKILL)
        if left:
            raise SystemExit(f"ranks {left} outlived a killed one by {PEERS_END:g} s")
        return time.monotonic() - at


def draw_kills(count: int, steps: int, ranks: int, seed: int) -> list[Kill]:
    """A fifth in start-up, two fifths in saving, the others anywhere; a third of them of all ranks
    and the launcher at once."""
    draw = random.Random(seed)
    kills = []
    for number in range(count):
        moment = ("start-up", "saving", "step", "saving", "step")[number % 5]
        delay = {"start-up": 15.0, "saving": 0.05, "step": 1.0}[moment]
        whom = draw.choice([None, *range(ranks), *range(ranks)]) if ranks > 1 else None
        at = int(LAST_KILL * steps * (number + draw.random()) / count)
        kills.append(Kill(moment, at, draw.uniform(0.0, delay), whom))
    return kills


def reached(life: Life, kill: Kill, first: int) -> bool:
    """Whether the moment of the kill has come."""
    if kill.moment == "start-up":
        return bool(life.ranks())
    if life.step < max(first + 1, kill.step):
        return False
    saving = any((life.folder / CHECKPOINTS).glob(f"*{UNFINISHED}"))
    return saving or kill.moment == "step"


def wait(life: Life, kill: Kill, first: int) -> None:
    """For the kill's delay; in start-up no longer than that lasts, on a machine of any speed."""
    until = time.monotonic() + kill.delay
    while (left := until - time.monotonic()) > 0:
        if kill.moment == "start-up" and life.step > first:
            return
        time.sleep(min(left, 0.05))


def live(life: Life, kill: Kill | None, log: Path) -> dict[str, Any] | None:
    """Watch a life to its end, or to the kill; what the kill met."""
    first, looked = life.step, 0.0
    while life.running:
        if time.monotonic() - looked > POLL:
            looked, step = time.monotonic(), life.step
            seen = {"seconds": looked - life.began, "step": step, "life": life.process.pid}
            with open(log, "a") as file:
                file.writelines(json.dumps(seen | vitals) + "\n" for vitals in life.vitals())
        if kill and reached(life, kill, first):
            wait(life, kill, first)
            saving = [p.name for p in (life.folder / CHECKPOINTS).glob(f"*{UNFINISHED}")]
            met = {"moment": kill.moment, "rank": kill.rank, "step": life.step, "saving": saving}
            if not life.running:
                break
            return met | {"others_ended_after": life.kill(kill.rank)}
        time.sleep(0.002 if kill and kill.moment == "saving" else 0.05)
    if life.process.returncode:
        told = (life.folder / "output.txt").read_text(errors="replace")[-3000:]
        raise SystemExit(f"the run ended by itself with {life.process.returncode}:\n{told}")
    return None


def run(folder: Path, ranks: int, steps: int, kills: list[Kill], own: Sequence[str] = ()) -> None:
    """To its end, through all of the kills that it lives long enough for; own: more settings."""
    for kill in [*kills, None]:
        met = live(Life(folder, ranks, steps, own), kill, folder / VITALS_FILE)
        if met is None:
            return
        print(json.dumps(met), flush=True)
        with open(folder / KILLS_FILE, "a") as file:
            file.write(json.dumps(met) + "\n")


def decided(folder: Path) -> list[dict[str, float]]:
    """The metrics log without what a clock, or the machine's memory, decides."""
    free = ("time/", "memory/")
    return [
        {k: v for k, v in line.items() if not k.startswith(free) and "seconds" not in k}
        for line in read_metrics(folder)
    ]


def differences(one: Path, other: Path) -> list[str]:
    """What two runs that ought to be the same do not have alike, bit for bit."""
    found = []
    if decided(one) != decided(other):
        found.append(METRICS_FILE)
    ours, theirs = (load_file(f / "adapter" / "adapter_model.safetensors") for f in (one, other))
    if ours.keys() != theirs.keys():
        return [*found, "names of the adapter's weights"]
    return found + [name for name, value in ours.items() if not value.equal(theirs[name])]


def curves(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """name: (steps, values), of each vital (the largest of the ranks) and of each phase's time."""
    seen = [line for line in whole_lines(folder / VITALS_FILE) if line["step"] > 0]
    found = {}
    for name in VITALS:
        of_step: dict[int, float] = {}
        for line in seen:
            of_step[line["step"]] = max(of_step.get(line["step"], 0.0), line[name])
        found[name] = (np.array(list(of_step)), np.array(list(of_step.values())))
    logged = [line for line in read_metrics(folder) if line["step"] > 0]
    for name in sorted({key for line in logged for key in line if key.startswith("time/")}):
        pairs = [(line["step"], line[name]) for line in logged if name in line]
        found[name] = (np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs]))
    return found


def growth(curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """A table: the median of the second tenth of the steps, and of the last."""
    lines = ["| | second tenth | last tenth | ratio |", "|---|---|---|---|"]
    for name, (steps, values) in curves.items():
        last = max(1, int(steps.max()))
        early = values[(steps > 0.1 * last) & (steps <= 0.2 * last)]
        late = values[steps > 0.9 * last]
        if early.size and late.size:
            before, after = float(np.median(early)), float(np.median(late))
            ratio = f"{after / before:.3f}" if before else "-"
            lines.append(f"| {name} | {before:.4g} | {after:.4g} | {ratio} |")
    return "\n".join(lines)


def picture(whole: Path, killed: Path, path: Path) -> None:
    """Memory, counts and times of the undisturbed run; the other run's steps with its kills."""
    found = curves(whole)
    figure, ((memory, counts), (times, lives)) = plt.subplots(2, 2, figsize=(11, 7))
    steps, resident = found["resident"]
    memory.plot(steps, resident / 2**20)
    memory.set(xlabel="step", ylabel="MiB, largest rank", ylim=(0, None), title="resident memory")
    for name in VITALS[1:]:
        counts.plot(*found[name], label=name)
    counts.set(xlabel="step", ylim=(0, None), title="of one rank")
    for number, (name, (steps, seconds)) in enumerate(found.items(), start=-len(VITALS)):
        if name.startswith("time/"):
            some = max(1, len(steps) // 40)  # phases vary with what is sampled
            smooth = np.convolve(seconds, np.full(some, 1 / some), "valid")
            style = "--" if number > 9 else "-"  # colours come again then
            times.plot(steps[some - 1 :], smooth, style, label=name.removeprefix("time/"))
    times.set(xlabel="step", ylabel="seconds", yscale="log", title="phases")
    kills = list(whole_lines(killed / KILLS_FILE)) if (killed / KILLS_FILE).exists() else []
    for moment in ("start-up", "step", "saving"):
        mine = [(n, kill["step"]) for n, kill in enumerate(kills, 1) if kill["moment"] == moment]
        if mine:
            lives.scatter(*zip(*mine, strict=True), label=moment)
    lives.set(xlabel="kill", ylabel="steps made", title="kills, and where they met the run")
    for axes in (counts, lives):
        axes.legend(frameon=False, fontsize=8)
    times.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of both runs"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/soak"), help="a folder, not yet")
    parser.add_argument("--figure", type=Path, help="default: OUTPUT/soak.png")
    args = parser.parse_args()
    whole, killed = args.output / "whole", args.output / "killed"
    args.output.mkdir(parents=True)
    kills = draw_kills(args.kills, args.steps, args.ranks, args.seed)
    run(whole, args.ranks, args.steps, [], args.set)
    run(killed, args.ranks, args.steps, kills, args.set)
    print(growth(curves(whole)))
    picture(whole, killed, args.figure or args.output / "soak.png")
    if found := differences(whole, killed):
        raise SystemExit(f"killed and undisturbed differ in: {', '.join(found)}")
    print(f"the same bits after {args.steps} steps, with {args.kills} kills and without")


if __name__ == "__main__":
    main()
