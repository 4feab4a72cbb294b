"""Ranks forked from a process that has imported what they need: real processes, at no start-up.

The imports of torch, DeepSpeed, transformers and PEFT take 6 CPU seconds a rank, and a launcher's
own another 3; here one process pays them once for all tests. The ranks differ from launched ones
in this alone, and in their common hash seed; so what is about a launcher, and one test of each
kind of run, goes through the real ones.
"""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from threading import Lock
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

PRELOADED = (
    "tests.ranks",
    "capo_ds.trainer",
    "capo_ds.warmup",
    "capo_ds.dry_run",
    "capo_ds.doctor",
    # With torch's compiler: DeepSpeed comes to it when it first partitions an optimizer.
    "deepspeed.runtime.zero.muon.original_muon",
)
PEERS_END = 30.0  # seconds for the others, once one has failed; their watchdogs need two
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(list(PRELOADED))


def preload(*modules: str) -> None:
    """From now on, ranks are forked from a process that has imported these modules as well.

    It has the environment that this one has now.
    """
    forkserver._forkserver._stop()
    _context.set_forkserver_preload([*PRELOADED, *modules])
    forkserver.ensure_running()


def run(
    ranks: list[dict[str, str]],
    script: Path,
    arguments: list[str],
    environment: dict[str, str],
    timeout: float,
) -> subprocess.CompletedProcess:
    """As a launcher would: the status is that of the first rank that fails, or 0.

    ranks: the variables of each, beside those of the environment.
    """
    with tempfile.TemporaryDirectory() as folder:
        printed = [Path(folder, name) for name in ("stdout", "stderr")]
        processes = [
            _context.Process(
                target=_rank,
                args=(script, arguments, environment | own, printed),
                name=f"rank {number}",
            )
            for number, own in enumerate(ranks)
        ]
        for process in processes:
            process.start()
        status = _wait_for_all(processes, timeout)
        out, error = (path.read_text(errors="replace") for path in printed)
    return subprocess.CompletedProcess([str(script), *arguments], status, out, error)


class ForkedSampler:
    """In the place of `Popen` in `capo_ds.rollout.process`: the sampler's process, forked as ranks
    are. What starting it is, the module's own fixture in test_process.py has."""

    def __init__(self, _: list[str], pass_fds: list[int], **__: Any):
        theirs = Connection(os.dup(pass_fds[0]))
        self._process = _context.Process(target=_sample, args=(theirs,))
        self._process.start()
        theirs.close()
        self._lock = Lock()
        self.pid, self.kill = self._process.pid, self._process.kill

    @property
    def returncode(self) -> int | None:
        with self._lock:  # of two threads that ask at its end, one would read nothing
            return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self) -> int:
        while (status := self.returncode) is None:
            time.sleep(0.01)
        return status


@contextmanager
def samplers_forked() -> Iterator[None]:
    """Inside, `ProcessSampler` starts its process so."""
    with pytest.MonkeyPatch.context() as patch:
        stand_in = SimpleNamespace(Popen=ForkedSampler, DEVNULL=subprocess.DEVNULL)
        patch.setattr("capo_ds.rollout.process.subprocess", stand_in)
        yield


def _sample(connection: Connection) -> None:
    from capo_ds.rollout import child

    sys.argv = ["", str(connection.fileno())]
    child.main()


def variables(ranks: int, port: str) -> list[dict[str, str]]:
    """What torchrun sets; nothing for a process that nobody launched."""
    if ranks == 1:
        return [{}]
    return [
        {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
        | {"LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for rank in range(ranks)
    ]


def _wait_for_all(processes: list, timeout: float) -> int:
    status, deadline = 0, time.monotonic() + timeout
    running = {process.sentinel: process for process in processes}
    while running:
        ended = wait(list(running), max(0.0, deadline - time.monotonic()))
        if not ended:
            for process in running.values():
                process.kill()
            status = status or 124
            deadline = time.monotonic() + timeout
        for sentinel in ended:
            process = running.pop(sentinel)
            process.join()
            if process.exitcode and not status:
                status = process.exitcode
                deadline = min(deadline, time.monotonic() + PEERS_END)
    return status


def _rank(script: Path, arguments: list[str], environment: dict[str, str], printed: list) -> None:
    """One rank: what `python script arguments` does, in this forked process."""
    for number, path in enumerate(printed, start=1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    np.random.seed()  # each rank its own, as in processes of their own
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(script.parent))
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves them out
