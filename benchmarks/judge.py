r"""The judge of answers beside other graders, on pairs whose truth is known by construction.

    python benchmarks/judge.py                       # table and JSON; some minutes
    python benchmarks/judge.py --failures 20         # and the pairs that our judge gets wrong
    python benchmarks/judge.py --family interval     # one family of answers only
    python benchmarks/judge.py --speed               # numeric answers a second, in one process
    python benchmarks/judge.py --grader "NeMo math_equal=grader.py:math_equal"

The pairs (`judged/`) are made from published answers of GSM8K, AMC and AIME, where `--data` has
their files, and from families of generated answers. A grader of `--grader` is called as
function(reference, given) and returns whether the two are equal; one that raises refuses.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(Path(__file__).parent))

from judged.forms import Pair  # noqa: E402
from judged.pairs import make_pairs  # noqa: E402

from capo_ds.plugins import named  # noqa: E402
from capo_ds.tasks.judge import Judge  # noqa: E402
from capo_ds.tasks.worker import Comparison  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "judge.json"
DATA = ROOT.parent / "shared" / "data"
OURS = "capo_ds"
NUMERIC = 100_000  # answers of the speed measurement
Grader = Callable[[Sequence[Pair]], list[bool]]


def by_judge(pairs: Sequence[Pair]) -> list[bool]:
    judge = Judge(time_limit=5.0, workers=1)
    comparisons = judge.compare([(pair.given, pair.reference) for pair in pairs])
    return [comparison is Comparison.EQUAL for comparison in comparisons]


def by_math_verify(pairs: Sequence[Pair]) -> list[bool]:
    """As its README says: both in a formula, its own rules of extraction, its own time limits."""
    from math_verify import LatexExtractionConfig, parse, verify

    settings = [LatexExtractionConfig(boxed_match_priority=0)]

    def equal(pair: Pair) -> bool:
        expected = parse(rf"\boxed{{{pair.reference}}}", settings)
        return verify(expected, parse(rf"\boxed{{{pair.given}}}", settings))

    logging.disable(logging.WARNING)
    return [bool(equal(pair)) for pair in pairs]


def by_function(function: Callable[[str, str], bool]) -> Grader:
    def grade(pairs: Sequence[Pair]) -> list[bool]:
        return [_asked(function, pair) for pair in pairs]

    return grade


def _asked(function: Callable[[str, str], bool], pair: Pair) -> bool:
    try:
        return bool(function(pair.reference, pair.given))
    except Exception:  # another's grader: what it cannot read, it refuses
        return False


# ---------------------------------------------------------------- counting


def measure(graders: dict[str, Grader], pairs: Sequence[Pair]) -> dict[str, dict]:
    results = {}
    for name, grader in graders.items():
        start = time.perf_counter()
        said = grader(pairs)
        seconds = time.perf_counter() - start
        results[name] = {"seconds": round(seconds, 1), **counts(pairs, said)}
        print(f"{name}: {seconds:.0f} s", file=sys.stderr, flush=True)
    return results


def counts(pairs: Sequence[Pair], said: Sequence[bool]) -> dict[str, dict]:
    """False accepts and refusals, over all and by family, each as [errors, pairs]."""
    families: dict[str, dict[str, list[int]]] = defaultdict(
        lambda: {"false accepts": [0, 0], "false refusals": [0, 0]}
    )
    for pair, equal in zip(pairs, said, strict=True):
        for family in ("all", pair.family):
            error = families[family]["false refusals" if pair.equal else "false accepts"]
            error[0] += equal != pair.equal
            error[1] += 1
    return dict(families)


def table(results: dict[str, dict]) -> str:
    lines = [
        "| | false accepts | false refusals | time (s) |",
        "|---|---:|---:|---:|",
    ]
    for name, result in results.items():
        accepts, refusals = (share(*result["all"][key]) for key in result["all"])
        lines.append(f"| {name} | {accepts} | {refusals} | {result['seconds']:.0f} |")
    return "\n".join(lines)


def share(errors: int, of: int) -> str:
    return f"{errors} of {of} ({100 * errors / max(of, 1):.2f}%)"


def family_table(results: dict[str, dict]) -> str:
    """By family: false accepts / false refusals of each grader."""
    families = [name for name in results[next(iter(results))] if name not in ("all", "seconds")]
    lines = [
        "| wrong, right pairs of | " + " | ".join(results) + " |",
        "|---|" + "---:|" * len(results),
    ]
    for family in families:
        own = [result[family] for result in results.values()]
        title = f"{family} ({own[0]['false accepts'][1]}, {own[0]['false refusals'][1]})"
        cells = [f"{one['false accepts'][0]} / {one['false refusals'][0]}" for one in own]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def print_failures(pairs: Sequence[Pair], said: Sequence[bool], most: int) -> None:
    """Pairs that were got wrong, at most so many of each family and kind."""
    shown: dict[tuple[str, str, bool], int] = defaultdict(int)
    for pair, equal in zip(pairs, said, strict=True):
        key = (pair.family, pair.kind.partition(";")[0], pair.equal)
        if equal == pair.equal:
            continue
        shown[key] += 1
        if shown[key] <= most:
            word = "refused" if pair.equal else "ACCEPTED"
            print(f"{word} {pair.given!r} for {pair.reference!r} ({pair.family}: {pair.kind})")


def speed() -> dict[str, float]:
    """Numeric answers a second, as ours reads them; best of three, each in a fresh judge."""
    pairs = [(f"{n:,}.0", str(n + n % 2)) for n in range(NUMERIC)]
    best = float("inf")
    for _ in range(3):
        judge = Judge(time_limit=5.0, workers=1)
        start = time.perf_counter()
        comparisons = judge.compare(pairs)
        best = min(best, time.perf_counter() - start)
        assert comparisons == [Comparison.EQUAL, Comparison.DIFFERENT] * (NUMERIC // 2)
    return {"numeric answers a second": round(NUMERIC / best)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--grader", action="append", default=[], metavar="NAME=FILE.py:FUNCTION")
    parser.add_argument("--ours", action="store_true", help="no other grader; writes no results")
    parser.add_argument("--family", help="pairs of one family of answers; writes no results")
    parser.add_argument("--per-family", type=int, default=30, help="answers of each family")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the benchmarks' files")
    parser.add_argument("--failures", type=int, default=0, help="pairs to print of each kind")
    parser.add_argument("--speed", action="store_true", help="numeric answers a second; no pairs")
    args = parser.parse_args()
    if args.speed:
        print(speed())
        return
    pairs = make_pairs(args.seed, args.per_family, args.data)
    pairs = [pair for pair in pairs if args.family in (None, pair.family)]
    if args.failures:
        print_failures(pairs, by_judge(pairs), args.failures)
    graders: dict[str, Grader] = {OURS: by_judge}
    if not args.ours:
        graders["math-verify"] = by_math_verify
        for entry in args.grader:
            name, _, function = entry.partition("=")
            graders[name] = by_function(named("--grader", function))
    results = measure(graders, pairs)
    print(table(results), family_table(results), sep="\n\n")
    if args.ours or args.family:
        return
    record = {"seed": args.seed, "pairs": len(pairs), "results": results, "speed": speed()}
    record |= {"python": platform.python_version(), "cores": os.cpu_count()}
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
