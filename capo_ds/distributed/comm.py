"""The process group, and the few collectives that the trainer needs.

One process with no launcher is a group of one, so that the same code runs under `python`,
`deepspeed`, `torchrun` and `mpirun`.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from capo_ds.config import ConfigError
from capo_ds.distributed import accelerator
from capo_ds.distributed.launch import (
    THREADS,
    agent_answers,
    busy_port,
    discover_ranks,
    launcher,
    share_cores,
    tell,
)
from capo_ds.distributed.watchdog import LAUNCHER_GONE, POLL, SILENCE, Silence, Watchdog
from capo_ds.own_code import place

T = TypeVar("T")
GLOO_SETTLES = 0.2  # seconds
FAILED = 1  # exit status

_watchdog: Watchdog | None = None
_ending = threading.Lock()
_doing = "start-up"  # the last phase that this rank has entered
_sent: Counter[str] = Counter()


class PeerError(RuntimeError):
    """Some rank failed in a phase; raised on every rank with the same text.

    rank: the first that failed, which shows its traceback; None: this one.
    """

    def __init__(self, text: str, rank: int | None = None):
        super().__init__(text)
        self.rank = rank


def init(timeout: timedelta = timedelta(minutes=30)) -> torch.device:
    """Join the process group of whatever launcher started this process; return its device.

    nccl where there are GPUs, gloo on CPU. The cores are shared out among the ranks of the machine
    unless OMP_NUM_THREADS says otherwise.

    Raises:
        ConfigError: the ranks cannot meet, or a GPU is there that cannot be used.
    """
    if dist.is_initialized():
        return device()
    discover_ranks()
    accelerator.settle()
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if THREADS not in os.environ:
        share_cores()
        torch.set_num_threads(int(os.environ[THREADS]))
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    # Not through deepspeed.init_distributed: its device_id argument has made later weight syncs
    # hang (allenai/open-instruct#1311), and on CPU it would compile a shared-memory extension.
    try:
        with _launcher_watched():
            dist.init_process_group(backend, timeout=timeout)
    except dist.DistNetworkError as error:
        if "EADDRINUSE" in str(error):
            raise busy_port() from error
        raise
    if world_size() > 1:
        global _watchdog
        _watchdog = Watchdog(_end_with_peer, lambda: _doing)
    return device()


@contextmanager
def _launcher_watched() -> Iterator[None]:
    """While the ranks wait for each other to come, which they do for as long as their time-out."""
    met = threading.Event()

    def watch() -> None:
        answered, silence = False, Silence()
        while not met.wait(POLL):
            # The launcher may have been gone before this process could look at who started it.
            answered = answered or agent_answers() is not False
            if launcher().gone() or (silence.after(answered) > SILENCE and not answered):
                _end_with_peer(LAUNCHER_GONE)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        met.set()
        thread.join()


def _end_with_peer(error: str, leave: Callable[[], None] = lambda: None) -> None:
    """End this process, which waits in a collective for a rank that has failed or is gone.

    leave: called when that is told.
    """
    with _ending:  # one thread tells; a collective of another's may break meanwhile
        try:
            tell(f"\nerror: {error}")  # below a bar
            leave()
        finally:  # the reader of stderr may be gone too
            os._exit(FAILED)


def finish() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        global _watchdog
        if _watchdog:
            _watchdog.stop()
            _watchdog = None
        # gloo's threads let go of the last collective's tensors under Python's lock; if they come
        # to it only when the interpreter ends, the process aborts (pytorch/pytorch#179291).
        time.sleep(GLOO_SETTLES)
        deepspeed = sys.modules.get("deepspeed.comm")
        if deepspeed and deepspeed.is_initialized():
            deepspeed.destroy_process_group()  # and what it remembers of the group
        else:
            dist.destroy_process_group()


def abandon(status: int, error: BaseException | None = None) -> None:
    """After an error, end this process where leaving the group might wait for ever: NCCL's teardown
    waits for collectives that are under way, which the other ranks will not finish. With gloo,
    whose does not, this returns.

    error: whose traceback is still to be shown.
    """
    if dist.is_initialized() and dist.get_backend() == "nccl":
        if _watchdog:
            _watchdog.stop()
        if error:
            traceback.print_exception(error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def rank() -> int:
    return dist.get_rank()


def world_size() -> int:
    return dist.get_world_size()


def is_main() -> bool:
    return rank() == 0


def device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def shard(items: list) -> list:
    """This rank's share of a list: every world-size-th item, so shares differ by one at most."""
    return items[rank() :: world_size()]


def take_bytes_sent() -> dict[str, int]:
    """Bytes that this rank has sent, by kind of collective, since the last call.

    Of `all_to_all` and `reduce_to_main`, which carry what CAPO adds to data parallelism.
    """
    taken = dict(_sent)
    _sent.clear()
    return taken


def all_to_all(sent: Tensor, sizes: list[int], received: Tensor, counts: list[int]) -> None:
    """Exchange with every other rank: of `sent`, flat, `sizes[r]` numbers after each other go to
    rank r, and `counts[r]` come from it into `received`, which is contiguous. None stay here."""
    assert sizes[rank()] == counts[rank()] == 0 and received.is_contiguous()
    dist.all_to_all_single(received.view(-1), sent, counts, sizes)
    _sent["all_to_all"] += sent.numel() * sent.element_size()


def reduce_to_main(tensor: Tensor) -> None:
    """Sum over the ranks, in place, on rank 0; the others' tensors are spent."""
    dist.reduce(tensor, dst=0)
    _sent["reduce"] += 0 if is_main() else tensor.numel() * tensor.element_size()


def gather(value: Any) -> list[Any]:
    """The picklable values of all ranks, in rank order, on every rank."""
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def unshard(items: list) -> list:
    """Undo `shard`: the items of all ranks in their first order, on every rank."""
    shares = gather(items)
    merged: list = [None] * sum(len(share) for share in shares)
    for index, share in enumerate(shares):
        merged[index :: world_size()] = share
    return merged


def broadcast(value: Any) -> Any:
    """Rank 0's picklable value, on every rank."""
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def broadcast_tensor(tensor: Tensor) -> None:
    """Make it rank 0's on every rank, in place."""
    dist.broadcast(tensor, src=0)


def sum_over_ranks(*values: float) -> list[float]:
    """Sum each number over the ranks, in float64."""
    total = torch.tensor(values, dtype=torch.float64, device=device())
    dist.all_reduce(total)
    return total.tolist()


def max_over_ranks(value: int) -> int:
    """The largest of the ranks' numbers."""
    largest = torch.tensor(value, device=device())
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def on_main(phase: str, function: Callable[[], T]) -> T:
    """Rank 0's result of the function, on every rank.

    Raises:
        PeerError: on every rank, if it fails there.
    """
    result = None
    with together(phase):
        if is_main():
            result = function()
    return broadcast(result)


@contextmanager
def together(phase: str) -> Iterator[None]:
    """Run a phase that has no collectives inside; if it fails on any rank, fail on all.

    (For one that has, there is `collective`.)

    Raises:
        ConfigError: on every rank, if the first failing rank found a setting that cannot be used.
        PeerError: on every rank otherwise, naming the phase, that rank and its error.
    """
    _enter(phase)
    error: BaseException | None = None
    try:
        yield
    except (Exception, SystemExit) as caught:  # a user's part may call sys.exit
        error = caught
    told = error and (isinstance(error, ConfigError), type(error).__name__, told_error(error))
    reports = gather(told)
    for peer, report in enumerate(reports):
        if report:
            bad_config, kind, text = report
            if bad_config:
                raise ConfigError(text) from error
            raise PeerError(f"{phase} failed on rank {peer}: {kind}: {text}", peer) from error


def told_error(error: BaseException) -> str:
    """Its text, and where it happened if that is in a user's file."""
    where = "" if isinstance(error, ConfigError) else place(error)
    return f"{error}{where}"


@contextmanager
def collective(phase: str) -> Iterator[None]:
    """Run a phase in which the ranks wait for each other; if it fails on any rank, all end.

    The failing rank raises; the others, who may wait for it in vain, are ended by their watchdogs
    within seconds, with the same message.

    Raises:
        ConfigError: on every rank, if every rank has found a setting that cannot be used.
        PeerError: on a rank that fails otherwise, naming the phase, the rank and the error.
    """
    _enter(phase)
    try:
        yield
    except PeerError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, ConfigError):
            found = _watchdog.found_by_all(str(error)) if _watchdog else str(error)
            if found is not None:
                raise ConfigError(found) from error
        text = f"{phase} failed on rank {rank()}: {type(error).__name__}: {told_error(error)}"
        tell_peers(text)
        raise PeerError(text) from error


def _enter(phase: str) -> None:
    global _doing
    _doing = phase


def phase(name: str, is_collective: bool) -> AbstractContextManager[None]:
    """`collective` or `together`, for a phase that is the one or the other by the settings."""
    return collective(name) if is_collective else together(name)


def tell_peers(error: str) -> None:
    """End the other ranks with this rank's error."""
    if _watchdog:
        _watchdog.tell(error)
