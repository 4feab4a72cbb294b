r"""The child process that compares two answers by SymPy: `python -m capo_ds.tasks.worker`.

Reads JSON lines [given, reference] from stdin and answers each with a line of stdout, the fields
of an `Outcome` as JSON; the first line is READY. The parent kills it when an answer takes too long
(`judge.Worker`): an exception from `signal.alarm` neither works in threads nor interrupts a
computation inside one call of C.
"""

import json
import os
import resource
import signal
import sys

from capo_ds.tasks.answers.compare import Engine, compare
from capo_ds.tasks.outcome import Comparison, Outcome

READY = "ready"
MEMORY_LIMIT = 4 * 2**30  # bytes of address space; a tower of powers would take all there is
ORPHANED_AFTER = 2.0  # times the time limit: a busy child whose parent has died ends itself


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    time_limit = float(sys.argv[1])
    replies, sys.stdout = sys.stdout, sys.stderr  # whatever the parsers print is no reply
    # It takes its time before READY, not before the first answer.
    from capo_ds.tasks.answers.symbols import Symbols

    engine = Symbols()
    print(READY, file=replies, flush=True)
    # Nobody reads what is printed from here on.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    for line in sys.stdin:
        # No handler: the alarm ends the process, also inside one call of C.
        signal.setitimer(signal.ITIMER_REAL, ORPHANED_AFTER * time_limit)
        outcome = compare_by_symbols(*json.loads(line), engine)
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(outcome), file=replies, flush=True)


def compare_by_symbols(given: str, reference: str, engine: Engine) -> Outcome:
    """The comparison of two answers, given as the contents of their boxes."""
    try:
        return compare(given, reference, engine)
    except Exception as error:  # of whatever kind: what SymPy cannot handle is no answer
        return Outcome(Comparison.UNPARSED, f"SymPy cannot compare it: {type(error).__name__}")


if __name__ == "__main__":
    main()
