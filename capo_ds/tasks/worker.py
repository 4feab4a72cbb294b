r"""The child process that compares two answers by math-verify: `python -m capo_ds.tasks.worker`.

Reads JSON lines [given, reference] from stdin and answers each with a line of stdout, the fields
of an `Outcome` as JSON; the first line is READY. The parent kills it when an answer takes too long
(`judge.Worker`): math-verify's own limit is `signal.alarm` with an exception, which neither works
in threads nor interrupts a computation inside one call of C.
"""

import json
import logging
import os
import resource
import signal
import sys
from functools import lru_cache

from capo_ds.tasks.outcome import Comparison, Outcome

READY = "ready"
MEMORY_LIMIT = 4 * 2**30  # bytes of address space; a tower of powers would take all there is
ORPHANED_AFTER = 2.0  # times the time limit: a busy child whose parent has died ends itself


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    time_limit = float(sys.argv[1])
    replies, sys.stdout = sys.stdout, sys.stderr  # whatever the parsers print is no reply
    import math_verify  # noqa: F401 - takes its time before READY, not before the first answer

    logging.disable(logging.CRITICAL)  # it warns that its own time limit is off
    print(READY, file=replies, flush=True)
    # The ANTLR parser prints each syntax error; nobody reads it from here on.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    for line in sys.stdin:
        # No handler: the alarm ends the process, also inside one call of C.
        signal.setitimer(signal.ITIMER_REAL, ORPHANED_AFTER * time_limit)
        outcome = compare_by_symbols(*json.loads(line))
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(outcome), file=replies, flush=True)


def compare_by_symbols(given: str, reference: str) -> Outcome:
    """math-verify's verdict on two answers, given as the contents of their boxes."""
    from math_verify import verify

    expected, answer = _parse(reference), _parse(given)
    if not expected or not answer:
        return Outcome(Comparison.UNPARSED, "math-verify cannot read it")
    try:
        same = verify(expected, answer, timeout_seconds=None, raise_on_error=True)
    except Exception:  # of whatever kind: what the symbols do not allow is no answer
        return Outcome(Comparison.UNPARSED, "math-verify cannot compare it")
    return Outcome(Comparison.EQUAL if same else Comparison.DIFFERENT, "by math-verify")


@lru_cache(maxsize=1024)
def _parse(content: str) -> list:
    """Expressions that a box's content can be read as; empty where there is none."""
    from math_verify import LatexExtractionConfig, parse

    return parse(
        rf"\boxed{{{content}}}",
        # The box alone: not a number that stands somewhere in a sentence.
        extraction_config=[LatexExtractionConfig(boxed_match_priority=0)],
        fallback_mode="no_fallback",
        parsing_timeout=None,
    )


if __name__ == "__main__":
    main()
