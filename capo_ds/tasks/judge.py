"""Equivalence of answers: exactly where that decides it, else by SymPy in child processes.

A symbolic comparison of a model's answer can take for ever or all memory. So it runs in a child
process that is killed at a time limit and replaced; the trainer itself needs no alarm signal.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import wait
from pathlib import Path
from queue import Queue
from typing import Any

from capo_ds.tasks.answers.compare import Engine, Undecided, compare, compare_numbers
from capo_ds.tasks.outcome import Comparison, Outcome
from capo_ds.tasks.worker import READY

START_LIMIT = 120.0  # seconds for a child to import SymPy, on a busy machine
PACKAGES = Path(__file__).resolve().parents[2]  # the folder that holds capo_ds


class Judge:
    """Compares answers with references. Children start when the first answer needs one."""

    def __init__(self, time_limit: float, workers: int):
        """time_limit: seconds per answer. workers: child processes at most, of this process."""
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="judge")
        self._free: Queue[Worker] = Queue()
        for _ in range(workers):
            self._free.put(Worker(time_limit))

    def compare(self, pairs: Sequence[tuple[str, str]]) -> list[Comparison]:
        """What became of each (given, reference). Raises as `explain` does."""
        return [outcome.comparison for outcome in self.explain(pairs)]

    def explain(self, pairs: Sequence[tuple[str, str]]) -> list[Outcome]:
        """What became of each (given, reference) and why; each distinct pair is compared once.

        Raises:
            RuntimeError: a child process could not be started.
        """
        found = {pair: _compare_here(*pair) for pair in pairs}
        known = {pair: outcome for pair, outcome in found.items() if outcome is not None}
        hard = [pair for pair in found if pair not in known]
        known |= zip(hard, self._threads.map(self._compare_in_child, hard), strict=True)
        return [known[pair] for pair in pairs]

    def _compare_in_child(self, pair: tuple[str, str]) -> Outcome:
        worker = self._free.get()
        try:
            return worker.ask(*pair)
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


class Worker:
    """One child process running `capo_ds.tasks.worker`, replaced after it had to be killed."""

    def __init__(self, time_limit: float):
        self.time_limit = time_limit
        self._process: Any = None  # a subprocess.Popen, once there is one

    def ask(self, given: str, reference: str) -> Outcome:
        """Raises `RuntimeError` if the child process does not start."""
        if self._process is None or self._process.poll() is not None:
            self._start()
        try:
            self._process.stdin.write(json.dumps([given, reference]) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:  # it has just died: a fresh one answers
            self._start()
            return self.ask(given, reference)
        if not wait([self._process.stdout], self.time_limit):
            self._stop()
            return Outcome(Comparison.TIMED_OUT, f"no verdict in {self.time_limit:g} s")
        reply = self._process.stdout.readline()
        if not reply:  # out of memory or stack
            self._stop()
            return Outcome(Comparison.UNPARSED, "the comparison ran out of memory")
        comparison, *told = json.loads(reply)
        return Outcome(Comparison(comparison), *told)

    def _start(self) -> None:
        paths = [str(PACKAGES), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "PYTHONHASHSEED": "0",  # the order of symbols in sets must not decide a verdict
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "capo_ds.tasks.worker", str(self.time_limit)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
        )
        weakref.finalize(self, self._process.kill)
        ready = wait([self._process.stdout], START_LIMIT)
        if not ready or self._process.stdout.readline().strip() != READY:
            self._process.kill()
            raise RuntimeError(
                "the process that compares answers did not start (python -m capo_ds.tasks.worker): "
                f"{self._process.communicate()[1].strip()[-500:]}"
            )

    def _stop(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._process = None
