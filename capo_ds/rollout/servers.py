"""Several vLLM servers as one: prompts shared out by load, lost servers left out and taken back."""

from __future__ import annotations

import warnings
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import partial
from threading import Lock
from typing import Any, TypeVar

from capo_ds.rollout.server_client import LOST, Server, ServerFailed
from capo_ds.rollout.waiting import in_background

CONNECTIONS = 64  # to a server at a time, of one rank

T = TypeVar("T")


class Servers:
    """every: all that the settings name; `living`: those that are asked. Its methods may be called
    from several threads.

    Every method raises `ServerFailed` where the last one is lost, with its address and error.
    """

    def __init__(self, every: list[Server]):
        self.every = every
        self.living = list(every)
        self._gone = ""  # how the last one was lost
        self._lock = Lock()

    def take_back(self) -> None:
        """Ask all again, until they are lost anew."""
        self.living = list(self.every)

    def each(self, what: str, function: Callable[[Server], T]) -> dict[str, T]:
        """Of every living server, by its address: what the function gives."""
        found = {}
        for server in list(self.living):
            try:
                found[server.url] = function(server)
            except LOST as error:
                self._leave_out(server, what, error)
        if not found:  # in another thread, perhaps, which has not been waited for
            raise ServerFailed(self._gone)
        return found

    def answers(
        self, requests: list[dict[str, Any]], among: list[Server] | None = None
    ) -> list[dict[str, Any]]:
        """To requests for completions, each by the server that has the fewest at its turn. What a
        lost one was asked, another is asked.

        among: those that may be asked, for they have the adapter; None: all that live now.
        """
        among = list(self.living) if among is None else among
        answers: list[Any] = [None] * len(requests)
        waiting, load = deque(range(len(requests))), Counter[str]()
        flying: dict[Future[dict[str, Any]], tuple[int, Server]] = {}
        while waiting or flying:
            while waiting and (server := self._least(load, among)):
                number = waiting.popleft()
                load[server.url] += 1
                flying[in_background(partial(server.complete, requests[number]))] = number, server
            done, _ = wait(flying, return_when=FIRST_COMPLETED)
            for future in done:
                number, server = flying.pop(future)
                load[server.url] -= 1
                try:
                    answers[number] = future.result()
                except LOST as error:
                    self._leave_out(server, "sampling", error)
                    if not any(each in self.living for each in among):
                        raise _lost(server, "sampling", error) from error
                    waiting.appendleft(number)
        return answers

    def _least(self, load: Counter[str], among: list[Server]) -> Server | None:
        """Who is asked next; nobody while all have as much as they may."""
        living = [server for server in among if server in self.living]
        # Lost in another thread just now: what this one asks them fails in the same way.
        server = min(living or among, key=lambda each: load[each.url])
        return server if load[server.url] < CONNECTIONS else None

    def _leave_out(self, server: Server, what: str, error: Exception) -> None:
        with self._lock:
            if server not in self.living:  # by an earlier request
                return
            self.living.remove(server)
            if not self.living:
                failed = _lost(server, what, error)
                self._gone = str(failed)
                raise failed from error
        warnings.warn(
            f"rollout.server_url: {server.url} is lost in {what} and left out until it answers "
            f"again, {len(self.living)} left: {_told(error)}",
            stacklevel=2,
        )


def _lost(server: Server, what: str, error: Exception) -> ServerFailed:
    return ServerFailed(
        f"rollout.server_url: {server.url} is lost in {what}, and no other is left: {_told(error)}"
    )


def _told(error: BaseException) -> str:
    if isinstance(error, ServerFailed) and error.__cause__:  # of one server, in the words above
        return _told(error.__cause__)
    return str(error) or type(error).__name__
