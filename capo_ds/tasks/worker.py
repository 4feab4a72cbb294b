r"""The process that compares two answers by SymPy: `python -m capo_ds.tasks.worker`.

It imports SymPy once and forks a child that answers. The child reads JSON lines [given, reference,
CPU seconds, wall seconds] from stdin and answers each with a line of stdout, the fields of an
`Outcome` as JSON; the first line is READY. Where an answer ends the child (its time, its memory, a
stack overflow inside C), this process says so in its place and forks another, in milliseconds.

The limit is one of CPU time, so that a busy machine grades as an idle one. It needs no handler: the
signal ends the child also inside one call of C. Once the trainer has died, both end.
"""

import gc
import json
import mmap
import os
import resource
import signal
import sys
from typing import TextIO

from capo_ds.tasks.answers.compare import Engine, compare
from capo_ds.tasks.outcome import Comparison, Outcome

READY = "ready"
MEMORY_LIMIT = 4 * 2**30  # bytes of address space; a tower of powers would take all there is
ANSWERS = 500  # of one child; then a fresh one, so that what SymPy caches does not add up
RENEWED = 3  # exit status after that many
PARENT_CHECK = 1.0  # seconds between looks whether the trainer is alive
TIMERS = {signal.SIGPROF: signal.ITIMER_PROF, signal.SIGALRM: signal.ITIMER_REAL}


def main() -> None:
    trainer = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})  # waited for in _wait
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    replies, sys.stdout = sys.stdout, sys.stderr  # whatever the parsers print is no reply
    from capo_ds.tasks.answers.symbols import Symbols  # takes its time before READY

    engine = Symbols()
    print(READY, file=replies, flush=True)
    # Nobody reads what is printed from here on.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    gc.freeze()  # what is there now stays shared with the children
    busy = mmap.mmap(-1, 1)  # shared: whether the child owes a reply
    while (status := _run_child(engine, replies, busy, trainer)) != 0:
        if busy[0]:
            busy[0] = 0
            print(json.dumps(_lost(status)), file=replies, flush=True)


def _run_child(engine: Engine, replies: TextIO, busy: mmap.mmap, trainer: int) -> int:
    """Fork a child and wait for its end: 0 when stdin has ended, -n after signal n."""
    child = os.fork()
    if child == 0:
        os._exit(_answer(engine, replies, busy))
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if os.getppid() != trainer:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return 0
        signal.sigtimedwait({signal.SIGCHLD}, PARENT_CHECK)


def _answer(engine: Engine, replies: TextIO, busy: mmap.mmap) -> int:
    for number, line in enumerate(sys.stdin, start=1):
        busy[0] = 1
        given, reference, *limits = json.loads(line)
        for timer, seconds in zip(TIMERS.values(), limits, strict=True):
            signal.setitimer(timer, seconds)
        outcome = compare_by_symbols(given, reference, engine)
        for timer in TIMERS.values():
            signal.setitimer(timer, 0)
        busy[0] = 0
        print(json.dumps(outcome), file=replies, flush=True)
        if number == ANSWERS:
            return RENEWED
    return 0


def _lost(status: int) -> Outcome:
    """The outcome of an answer that ended its child."""
    if -status in TIMERS:
        return Outcome(Comparison.TIMED_OUT, "the comparison took too long")
    return Outcome(Comparison.UNPARSED, "the comparison ran out of memory")


def compare_by_symbols(given: str, reference: str, engine: Engine) -> Outcome:
    """The comparison of two answers, given as the contents of their boxes."""
    try:
        return compare(given, reference, engine)
    except Exception as error:  # of whatever kind: what SymPy cannot handle is no answer
        return Outcome(Comparison.UNPARSED, f"SymPy cannot compare it: {type(error).__name__}")


if __name__ == "__main__":
    main()
