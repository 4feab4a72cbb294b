"""Ends every rank when one of them fails, or is not heard of any more.

Ranks wait for each other in collectives, for as long as their time-out (half an hour and more: a
slow rank is no dead one). So each has two threads that do not wait in them. One talks to the
rendezvous store: it leaves a sign of life there, and reads whether a rank has failed (out of memory
in a ZeRO 3 forward pass, say, which the others would await in vain). The other counts how long the
first has had no answer, for a store that does not answer at all keeps its clients waiting for ever:
the machine is gone, or the link to it. On rank 0 it counts how long each rank has been silent; and
on every rank, whether its launcher is still there.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch.distributed as dist

from capo_ds.distributed.launch import launcher

FAILURE = "failure"
ERROR = "error/{}/{}"  # what a rank has found: its number, and the rank
SIGN = "sign/{}"  # of life, of a rank: its count, machine and phase
ENDED = "ended"  # the sign of a rank that has come to its end, and has no word for the store
POLL = 0.5  # seconds
SILENCE = 40.0  # seconds without a sign of life, after which a rank is taken for dead
LAUNCHER_GONE = "the launcher of this rank is gone"
LEAVING = 15.0  # seconds that a rank may outlive rank 0, at the end of a run
PARTING = 5.0  # seconds that a rank waits for the others to end: one of them may be dead


@dataclass
class Silence:
    """How long something has not changed, in seconds that this process was awake: one that was
    stopped for a while (Ctrl-Z) must not find that all others are dead."""

    value: object = None
    seconds: float = 0.0
    _seen: float = field(default_factory=time.monotonic)

    def after(self, value: object) -> float:
        """Seconds for which it has been this value."""
        now = time.monotonic()
        self.seconds = 0.0 if value != self.value else self.seconds + min(now - self._seen, 2.0)
        self.value, self._seen = value, now
        return self.seconds


class Watchdog:
    """Two threads of this rank, from now until `stop`.

    on_failure: called, mostly in one of them, with what happened elsewhere, once there is
        something; and with what is to be done after it has been told. It ends the process.
    doing: what this rank is at, for the others to tell if it goes silent.
    """

    def __init__(
        self,
        on_failure: Callable[[str, Callable[[], None]], None],
        doing: Callable[[], str],
    ):
        self._on_failure, self._doing = on_failure, doing
        self._rank, self._ranks = dist.get_rank(), dist.get_world_size()
        self._address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        # A connection of its own: one that waits for a key in a collective would make us wait too.
        store = dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage] # documented
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            wait_for_workers=False,
        )
        # torchrun's store outlives its workers: those that it starts again must not read of the
        # failure that ended the ones before.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._store = dist.PrefixStore(  # pyright: ignore[reportPrivateImportUsage] # documented
            f"capo_ds/{attempt}", store
        )
        if self._rank == 0:  # or reading them would wait for those that have not started
            for rank in range(self._ranks):
                self._store.compare_set(SIGN.format(rank), "", "")
        self._signs = [""] * self._ranks  # as rank 0 has last read them; elsewhere they stay so
        self._answers = 0  # of the store
        self._lost = False  # the connection, at once: rank 0's process is gone
        self._shown = 0  # errors of this rank, to be compared
        self._telling = False  # the failure in the store may be this rank's own
        self._parted: float | None = None  # when to wait for the others no longer
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=work, name=work.__name__, daemon=True)
            for work in (self._talk, self._watch)
        ]
        self._give_sign()
        for thread in self._threads:
            thread.start()

    def tell(self, error: str) -> None:
        """Make an error of this rank known; lasts until the others have read it and told it.

        If a peer was first, this rank ends with the peer's error: its own is most likely what
        follows from that, such as a collective that broke when the peer left it.
        """
        self._telling = True
        try:
            first = self._store.compare_set(FAILURE, "", error).decode()
            if first != error:
                self._on_failure(first, self._leave)
            self._wait_for_others()
            self._stopping.set()
            self._leave()  # here: the process may end at once
        except dist.DistError:  # rank 0 is gone, and no store is left to tell
            self._stopping.set()  # this rank's own error stands

    def found_by_all(self, error: str) -> str | None:
        """Rank 0's error, if within seconds each rank has one to show here; None: some have not,
        and are to be told of this one."""
        self._shown += 1  # as often on all ranks, or they end
        keys = [ERROR.format(self._shown, rank) for rank in range(self._ranks)]
        try:
            self._store.set(keys[self._rank], error)
            patience = time.monotonic() + PARTING
            while not self._store.check(keys):
                if time.monotonic() > patience:
                    return None
                time.sleep(POLL / 10)
            return self._store.get(keys[0]).decode()
        except dist.DistError:  # rank 0 is gone
            return None

    def stop(self) -> None:
        """This rank has come to its end: nobody need wait for a sign of it."""
        self._stopping.set()
        for thread in self._threads:  # the first may wait for a store that does not answer
            thread.join(PARTING + POLL)

    def _leave(self) -> None:
        """Say so, with the last word to the store; which lives in rank 0's process, so that rank 0
        leaves last: the others' connections would complain."""
        self._store.set(SIGN.format(self._rank), ENDED)
        if self._rank == 0:
            self._wait_for_others()

    def _wait_for_others(self) -> None:
        others = [SIGN.format(rank) for rank in range(self._ranks) if rank != self._rank]
        self._parted = self._parted or time.monotonic() + PARTING
        while any(sign.decode() != ENDED for sign in self._store.multi_get(others)):
            if time.monotonic() > self._parted:
                return
            time.sleep(POLL / 10)

    def _give_sign(self) -> None:
        sign = f"{self._answers} {socket.gethostname()} {self._doing()}"
        self._store.set(SIGN.format(self._rank), sign)

    def _talk(self) -> None:
        try:
            while not self._stopping.wait(POLL):
                self._give_sign()
                failed = self._store.check([FAILURE])
                if self._rank == 0:
                    read = self._store.multi_get(list(map(SIGN.format, range(self._ranks))))
                    self._signs = [sign.decode() for sign in read]
                self._answers += 1
                if failed and not self._telling:
                    self._on_failure(self._store.get(FAILURE).decode(), self._leave)
                    return
            self._leave()
        except dist.DistError:
            self._lost = True

    def _watch(self) -> None:
        answers, gone = Silence(), Silence()
        signs = [Silence() for _ in self._signs]

        def trouble() -> str | None:
            """What ends this rank; None while all is well."""
            if launcher().gone():
                return LAUNCHER_GONE
            if self._lost:
                if gone.after(True) > LEAVING:
                    return f"rank 0 is gone, and its store at {self._address} with it"
            elif answers.after(self._answers) > SILENCE:
                return (
                    f"no answer from rank 0's store at {self._address} for {SILENCE:.0f} s, while "
                    f"this rank was at {self._doing()!r}: that machine or the link to it is gone"
                )
            for rank, (silence, sign) in enumerate(zip(signs, self._signs, strict=True)):
                # A rank without any sign has not come yet: that is the group's time-out to judge.
                if silence.after(sign) > SILENCE and sign not in ("", ENDED):
                    self.tell(dead := _obituary(rank, sign))
                    return dead
            return None

        while not self._stopping.wait(POLL):
            if told := trouble():
                self._on_failure(told, lambda: None)
                return


def _obituary(rank: int, sign: str) -> str:
    """Of a rank, by the last sign that it gave."""
    _, machine, doing = sign.split(" ", 2)
    return (
        f"rank {rank} on {machine} has not been heard of for {SILENCE:.0f} s; it was at "
        f"{doing!r}: the process, its machine or the link to it is gone"
    )
