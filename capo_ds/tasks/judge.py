"""Equivalence of answers: exactly where that decides it, else by SymPy in child processes.

A symbolic comparison of a model's answer can take for ever or all memory. So it runs in a process
of its own (`worker`), which has the CPU time of the limit; the trainer needs no alarm signal.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import wait
from pathlib import Path
from queue import LifoQueue
from typing import IO

from capo_ds.tasks.answers.compare import Engine, Undecided, compare, compare_numbers
from capo_ds.tasks.outcome import Comparison, Outcome
from capo_ds.tasks.worker import READY

START_LIMIT = 120.0  # seconds for a child to import SymPy, on a busy machine
WALL_FACTOR = 20.0  # times the CPU time: a child that sleeps or starves ends then
GRACE = 10.0  # seconds beyond that for a reply, before all is killed from outside
PACKAGES = Path(__file__).resolve().parents[2]  # the folder that holds capo_ds
UNJUDGED = Outcome(Comparison.UNJUDGED, "the time of the step (reward.step_budget) was spent")


class Judge:
    """Compares answers with references. Children start when the first answer needs one."""

    def __init__(self, time_limit: float, workers: int):
        """time_limit: CPU seconds per answer. workers: processes at most, of this process."""
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="judge")
        self._free: LifoQueue[Worker] = LifoQueue()  # one that runs already comes first
        for _ in range(workers):
            self._free.put(Worker(time_limit))
        self._deadline: float | None = None

    @contextlib.contextmanager
    def within(self, budget: float) -> Iterator[None]:
        """Seconds for all that is compared inside; what has no verdict by then is unjudged."""
        self._deadline = time.monotonic() + budget
        try:
            yield
        finally:
            self._deadline = None

    def compare(self, pairs: Sequence[tuple[str, str]]) -> list[Comparison]:
        """What became of each (given, reference). Raises as `explain` does."""
        return [outcome.comparison for outcome in self.explain(pairs)]

    def explain(self, pairs: Sequence[tuple[str, str]]) -> list[Outcome]:
        """What became of each (given, reference) and why; each distinct pair is compared once.

        Raises:
            RuntimeError: a child process could not be started.
        """
        known: dict[tuple[str, str], Outcome] = {}
        hard: list[tuple[str, str]] = []
        for pair in dict.fromkeys(pairs):
            if outcome := _compare_here(*pair):
                known[pair] = outcome
            else:
                hard.append(pair)
        known |= zip(hard, self._threads.map(self._compare_in_child, hard), strict=True)
        return [known[pair] for pair in pairs]

    def _compare_in_child(self, pair: tuple[str, str]) -> Outcome:
        worker = self._free.get()
        try:
            return worker.ask(*pair, self._deadline)
        finally:
            self._free.put(worker)


def _compare_here(given: str, reference: str) -> Outcome | None:
    """What needs no child process; None for the rest."""
    if outcome := compare_numbers(given, reference):
        return outcome
    try:
        return compare(given, reference, Engine())
    except Undecided:
        return None
    except Exception as error:  # a completion is untrusted text: none of it may end the run
        return Outcome(Comparison.UNPARSED, f"it cannot be read: {type(error).__name__}")


class Worker:
    """One process of `capo_ds.tasks.worker`, with the child that it forks."""

    def __init__(self, time_limit: float):
        self.time_limit = time_limit
        self._process: subprocess.Popen[str] | None = None

    def ask(self, given: str, reference: str, deadline: float | None = None) -> Outcome:
        """deadline: by `time.monotonic`; without a verdict by then the answer is unjudged.

        Raises:
            RuntimeError: the process does not start.
        """
        wall = WALL_FACTOR * self.time_limit
        if deadline is not None:
            wall = min(wall, deadline - time.monotonic())
            if wall <= 0:
                return UNJUDGED
        outcome = self._reply([given, reference, self.time_limit, wall], wall + GRACE)
        late = deadline is not None and time.monotonic() >= deadline
        return UNJUDGED if late and outcome.comparison is Comparison.TIMED_OUT else outcome

    def _reply(self, request: list, patience: float) -> Outcome:
        process = self._process
        if process is None or process.poll() is not None:
            process = self._start()
        requests, replies = _pipes(process)
        try:
            requests.write(json.dumps(request) + "\n")
            requests.flush()
        except BrokenPipeError:  # it has just died: a fresh one answers
            self._start()
            return self._reply(request, patience)
        if not wait([replies.fileno()], patience):
            self._stop()
            return Outcome(Comparison.TIMED_OUT, "the process that compares does not answer")
        reply = replies.readline()
        if not reply:
            self._stop()
            return Outcome(Comparison.UNPARSED, "the process that compares has died")
        comparison, *told = json.loads(reply)
        return Outcome(Comparison(comparison), *told)

    def _start(self) -> subprocess.Popen[str]:
        self._stop()
        paths = [str(PACKAGES), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "PYTHONHASHSEED": "0",  # the order of symbols in sets must not decide a verdict
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "capo_ds.tasks.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
            start_new_session=True,  # a group of its own: killed with its child
        )
        self._process = process
        weakref.finalize(self, _kill, process)
        _, replies = _pipes(process)
        if not wait([replies.fileno()], START_LIMIT) or replies.readline().strip() != READY:
            _kill(process)
            raise RuntimeError(
                "the process that compares answers did not start (python -m capo_ds.tasks.worker): "
                f"{process.communicate()[1].strip()[-500:]}"
            )
        return process

    def _stop(self) -> None:
        if self._process is not None:
            _kill(self._process)
            self._process.communicate()
            self._process = None


def _pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    """For requests and for replies."""
    assert process.stdin is not None and process.stdout is not None  # `_start` asks for both
    return process.stdin, process.stdout


def _kill(process: subprocess.Popen) -> None:
    """The process and its child; nothing where it has been waited for, and the number is free."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
