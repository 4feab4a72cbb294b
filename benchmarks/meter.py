"""Steps of several trainers in turns, each in a process of its own, and their CPU seconds.

The trainer's process calls `Meter.step` at the end of each of its steps, which says what the step
took, and waits for its next turn; `Turns` is the other end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def keep(found: dict[str, Any], file: Path) -> None:
    """Write JSON results, in the place of those of the same names, beside the others."""
    known = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(known | found, indent=2) + "\n")


class Meter:
    """Takes stdin and stdout to itself; what else is printed goes to stderr."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._begun = time.process_time()

    def step(self, length: float) -> None:
        """length: tokens of the step's responses, their mean."""
        spent = time.process_time() - self._begun
        print(json.dumps({"seconds": spent, "length": length}), file=self._out, flush=True)
        if not sys.stdin.readline():
            os._exit(0)  # the measuring is over; the run has more steps than that
        self._begun = time.process_time()


@dataclass
class Turns:
    """A trainer's process. Its first step is made while it starts, before its turn comes."""

    name: str
    process: subprocess.Popen[str]
    log: Path

    @staticmethod
    def start(name: str, command: list[str], log: Path, environment: dict[str, str]) -> Turns:
        with log.open("w") as errors:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
            )
        one = Turns(name, process, log)
        one._told()
        return one

    def turn(self) -> dict[str, float]:
        """What its next step took. Raises RuntimeError if it has ended instead."""
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._told()

    def _told(self) -> dict[str, float]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} has ended:\n{self.log.read_text()[-3000:]}")
        return json.loads(line)

    def end(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()
