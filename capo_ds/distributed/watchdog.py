"""Tells every rank of a failure that happened where the ranks wait for each other.

A rank that fails inside a collective phase (out of memory in a ZeRO 3 forward pass, say) can no
longer meet the others: they wait in the next collective until its time-out. So it writes its error
to the rendezvous store, which a thread of every rank reads; that thread then ends its process.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import torch.distributed as dist

KEY = "capo_ds/failure"
POLL = 0.5  # seconds


class Watchdog(threading.Thread):
    """on_failure: called in this thread, with a peer's error, once there is one."""

    def __init__(self, on_failure: Callable[[str], None]):
        super().__init__(name="watchdog", daemon=True)
        self._on_failure = on_failure
        # A connection of its own: one that waits for a key in a collective would make us wait too.
        self._store = dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage] # documented
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            wait_for_workers=False,
        )
        self._stopping = threading.Event()
        self.start()

    def tell(self, error: str) -> None:
        """Make an error of this rank known, unless a peer was first; lasts until all have read."""
        self._stopping.set()
        if not self._store.check([KEY]):
            self._store.set(KEY, error)
        time.sleep(3 * POLL)  # rank 0 must outlive it: the store lives in its process

    def stop(self) -> None:
        self._stopping.set()
        self.join()

    def run(self) -> None:
        while not self._stopping.wait(POLL):
            try:
                failed = self._store.check([KEY])
            except dist.DistStoreError:
                return  # rank 0 is gone, and with it what there was to read
            if failed:
                self._on_failure(self._store.get(KEY).decode())
                return
