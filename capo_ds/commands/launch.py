"""Run a launcher, hand Ctrl-C to the ranks alone, and start again after a loss.

    capo launch [--restarts N] [--pause SECONDS] deepspeed --num_gpus 8 launchers/train.py ...

COMMAND is any launcher with its arguments: deepspeed, torchrun, mpirun, srun, a script of yours.
Ctrl-C, or SIGTERM to this process, lets the ranks finish their step and save, however long it
takes, and shows no traceback of the launcher's; a second Ctrl-C ends them at once. A command that
fails is started again, up to N times, with the number of the start (0, 1, ...)
in CAPO_START; with train.resume=auto the run goes on from its newest checkpoint.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

import psutil

from capo_ds.cli import BAD_CONFIG
from capo_ds.distributed.launch import KEEPER, LAST_STATUS, RANK_VARIABLES
from capo_ds.interruption import INTERRUPTED

START = "CAPO_START"  # number of this start of the command, for scripts
NO_NEW_START = (BAD_CONFIG, INTERRUPTED)  # statuses that none mends, or that were asked for
POLL = 0.1  # seconds
PAUSE = 60.0  # seconds: within them the ranks of other machines notice the loss and end
ENDS = 5.0  # seconds that a process may take to end after SIGTERM
CARRIERS = ("mpirun", "mpiexec", "orterun", "prterun", "srun", "pdsh")  # of the ranks' own words


class Keeper:
    """One command and the signals for it, over all its starts."""

    def __init__(self, command: list[str]):
        self.command = command
        self.ending = False  # the user or the scheduler wants no more of it
        self._ended = False  # by this process, at once
        self._asked: list[int] = []  # signals that have not been passed on
        self._process: subprocess.Popen[bytes] | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number: int, _: FrameType | None) -> None:
        self._asked.append(number)

    def run(self, number: int) -> int:
        """Start the command and wait for its end; the exit status, as of a shell.

        Raises:
            OSError: it cannot be started.
        """
        environment = os.environ | {START: str(number), KEEPER: str(os.getpid())}
        with TemporaryDirectory(prefix="capo_ds-") as folder:
            told = Path(folder) / "status"
            environment[LAST_STATUS] = str(told)
            # In a group of its own: the terminal's Ctrl-C comes to this process alone.
            self._process = subprocess.Popen(self.command, env=environment, process_group=0)
            while self._process.poll() is None:
                if self._asked:
                    self._asked.clear()
                    self._pass_on()
                time.sleep(POLL)
            self._end_left_over()
            status = self._process.returncode
            if status and told.exists() and told.read_text() == str(BAD_CONFIG):
                return BAD_CONFIG
        if self._ended:  # not by a loss, as the status of a launcher would have it that was killed
            return INTERRUPTED
        return 128 - status if status < 0 else status

    def _end_left_over(self) -> None:
        """Ranks whose launcher is gone end within seconds; the next start must not meet them."""
        left = [process for process in psutil.process_iter() if _is_below(process)]
        _send(left, signal.SIGTERM)
        _wait_for(left)

    def rest(self, seconds: float) -> None:
        """Wait, unless the end is asked for."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self._asked:
            time.sleep(POLL)
        self.ending = self.ending or bool(self._asked)

    def _pass_on(self) -> None:
        """The first time: to ranks that can finish their step; the second time, all end."""
        family = psutil.Process().children(recursive=True)
        ranks = _ranks(family)
        finishing = [rank for rank in ranks if _catches(rank, signal.SIGTERM)]
        if not ranks:  # they are elsewhere, and their carrier passes it on
            _send(family[:1], signal.SIGTERM)
        elif self.ending:
            self._end_now(family, ranks, signal.SIGINT)
        elif finishing:
            # Ranks of other machines follow these. A launcher that is told would cut them short.
            _send(finishing, signal.SIGINT)
        else:
            print("\ninterrupted: nothing new was saved", file=sys.stderr, flush=True)
            self._end_now(family, ranks, signal.SIGTERM)
        self.ending = True

    def _end_now(
        self, family: list[psutil.Process], ranks: list[psutil.Process], number: int
    ) -> None:
        self._ended = True
        _end(family, ranks, number)


def _end(family: list[psutil.Process], ranks: list[psutil.Process], number: int) -> None:
    """End all processes, the ranks by a signal of their own. Launchers would have much to say about
    it: they go first, but for those that carry the ranks' words."""
    below = {child.pid for rank in ranks for child in [rank, *_children(rank)]}
    launchers = [process for process in family if process.pid not in below]
    _send([one for one in launchers if _name(one) not in CARRIERS], signal.SIGKILL)
    _send(ranks, number)
    _wait_for(family)


def _wait_for(processes: list[psutil.Process]) -> None:
    """For their end, with force after a while; a child of ours stays for `Popen` to read."""
    until = time.monotonic() + ENDS
    alive = processes
    while alive and time.monotonic() < until:
        time.sleep(POLL)
        alive = [process for process in alive if _is_alive(process)]
    _send(alive, signal.SIGKILL)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _ranks(family: list[psutil.Process]) -> list[psutil.Process]:
    """Those that a launcher has given a number, without their children; else the command itself,
    unless that starts ranks elsewhere."""
    numbered = {process.pid: process for process in family if _is_numbered(process)}
    if numbered:
        below = {child.pid for process in numbered.values() for child in _children(process)}
        return [process for pid, process in numbered.items() if pid not in below]
    return [] if any(_name(process) in CARRIERS for process in family) else family[:1]


def _is_numbered(process: psutil.Process) -> bool:
    try:
        return any(name in process.environ() for name in RANK_VARIABLES if name not in os.environ)
    except psutil.Error:
        return False


def _is_below(process: psutil.Process) -> bool:
    """Whether it was started by this process, though its parent may be gone."""
    try:
        return process.environ().get(KEEPER) == str(os.getpid())
    except psutil.Error:
        return False


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


def _catches(process: psutil.Process, number: int) -> bool:
    """Whether a process has a handler of the signal, as runs have of SIGTERM in their steps."""
    try:
        status = Path("/proc", str(process.pid), "status").read_text()
    except OSError:
        return False
    mask = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(mask.split()[1], 16) >> (number - 1) & 1)


def _send(processes: list[psutil.Process], number: int) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def keep(command: list[str], restarts: int, pause: float) -> int:
    """Run the command, again after each loss; the exit status of its last start."""
    keeper = Keeper(command)
    for start in range(restarts + 1):
        status = keeper.run(start)
        if status in (0, *NO_NEW_START) or keeper.ending or start == restarts:
            break
        print(
            f"capo launch: the command ended with status {status}; start {start + 1} of "
            f"{restarts} follows in {pause:g} s",
            file=sys.stderr,
            flush=True,
        )
        keeper.rest(pause)
        if keeper.ending:
            break
    return status


def missing(command: list[str]) -> str | None:
    """What the command needs and this machine lacks, with the remedy; None if nothing."""
    options = [word.partition("=")[0] for word in command]
    by_hostfile = {"--hostfile", "-H"} & set(options) and "deepspeed" in " ".join(command[:3])
    if by_hostfile and not {"--no_ssh", "--launcher"} & set(options) and not shutil.which("pdsh"):
        return (
            "deepspeed --hostfile reaches the other machines by pdsh, which is not installed here: "
            "apt install pdsh (or dnf), or --launcher openmpi, or --no_ssh on each machine"
        )
    return None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--restarts", type=int, default=0, help="at most (%(default)s)")
    parser.add_argument(
        "--pause",
        type=float,
        default=PAUSE,
        help="seconds before a restart (%(default)g: then ranks elsewhere have ended too)",
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND ...")
    args = parser.parse_args()
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        parser.error("COMMAND is missing: the launcher with its arguments")
    if args.restarts < 0 or args.pause < 0:
        parser.error("--restarts and --pause cannot be negative")
    if told := missing(command):
        parser.error(told)
    try:
        status = keep(command, args.restarts, args.pause)
    except OSError as error:
        parser.error(f"{command[0]}: {error.strerror}")
    sys.exit(status)


if __name__ == "__main__":
    main()
