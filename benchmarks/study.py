"""The study behind docs/results.md: which aggregate of per-sample gradients helps, and where.

    OMP_NUM_THREADS=1 python benchmarks/study.py run    # make what is missing; go on after a stop
    python benchmarks/study.py report                   # tables and figures of what there is

`run` makes one run after the other on one rank, in the order of benchmarks/studied/plan.py; start
it twice to use two cores. A run's folder is runs/study/SETTING/METHOD/RATE-seedN, its record
record.json there. `report` gathers the records into benchmarks/results/study.jsonl, and writes
docs/figures/study_*.png and the tables of docs/results.md.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from studied.plan import APART_MODEL, RECIPES, SEEDS_OF, Run, wanted

REPOSITORY = Path(__file__).resolve().parents[1]
RUNS = REPOSITORY / "runs" / "study"
RECORD = "record.json"
RESULTS = REPOSITORY / "benchmarks" / "results" / "study.jsonl"
PAGE = REPOSITORY / "docs" / "results.md"


def run_of(record: dict) -> Run:
    return Run(record["setting"], record["method"], record["rate"], record["seed"])


def records(folder: Path) -> dict[Run, dict]:
    """Of all finished runs: those gathered in `RESULTS`, and those in the folder."""
    gathered = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    own = [path.read_text() for path in sorted(folder.glob(f"*/*/*/{RECORD}"))]
    return {run_of(record): record for record in map(json.loads, [*gathered, *own])}


def score(record: dict) -> float:
    """What learning rates are tuned for: the mean accuracy (by the true rule) over the steps."""
    accuracies = record["steps"]["series"]["reward/accuracy"]
    return sum(accuracies) / len(accuracies)


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether this process alone works in the folder; let go of when it ends, however it ends."""
    path.mkdir(parents=True, exist_ok=True)
    with open(path / "claim", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def make_and_write(run: Run, folder: Path) -> None:
    """In a process of its own: the record, written in one go."""
    from studied.making import make

    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    record = make(run, folder)
    partial = folder / "record.tmp"
    partial.write_text(json.dumps(record) + "\n")
    partial.replace(folder / RECORD)


def make_model() -> None:
    """The model of the setting `apart`, unless it is there."""
    if not (REPOSITORY / APART_MODEL / "model.safetensors").exists():
        command = [sys.executable, "launchers/warmup.py", "--config", RECIPES["apart"]]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
        subprocess.run(command, cwd=REPOSITORY, env=environment, check=True)


def work(folder: Path, only: str) -> None:
    """Make runs until none is left that no other worker is at."""
    with claimed(folder) as first:
        if first:
            make_model()
    import deepspeed  # noqa: F401  once, before the processes of the runs are forked

    import capo_ds.trainer  # noqa: F401

    fork = multiprocessing.get_context("fork")
    failed: set[Run] = set()
    while True:
        done = {run: score(record) for run, record in records(folder).items()}
        for run in wanted(done):
            if run in failed or not run.name.startswith(only):
                continue
            with claimed(folder / run.name) as mine:
                if not mine or (folder / run.name / RECORD).exists():
                    continue
                process = fork.Process(target=make_and_write, args=(run, folder / run.name))
                process.start()
                process.join()
                if process.exitcode:
                    failed.add(run)
                print(f"{run.name}: {'FAILED' if process.exitcode else 'done'}", flush=True)
                break
        else:
            return


def report(folder: Path) -> None:
    """Gather the records, and write tables and figures."""
    from studied.report import figure, write_tables

    known = records(folder)
    ordered = [known[run] for run in sorted(known, key=lambda run: run.name)]
    RESULTS.write_text("".join(json.dumps(record) + "\n" for record in ordered))
    write_tables(ordered, PAGE)
    for setting in dict.fromkeys(run.setting for run in known if run.setting not in SEEDS_OF):
        figure(ordered, setting, PAGE.parent / "figures" / f"study_{setting.replace(' ', '_')}.png")
    print(f"{len(ordered)} runs: {PAGE}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="make the runs that are missing")
    run.add_argument("--only", default="", help="runs whose name starts so")
    for command in (run, commands.add_parser("report", help="tables and figures")):
        command.add_argument("--runs", type=Path, default=RUNS, help="folder of the runs")
    arguments = parser.parse_args()
    if arguments.command == "run":
        work(arguments.runs, arguments.only)
    else:
        report(arguments.runs)


if __name__ == "__main__":
    main()
