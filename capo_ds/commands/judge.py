r"""Grade one answer against one reference, and explain.

    python launchers/judge.py '1 4/5' '\frac{9}{5}'
    capo judge -- '-2\le x\le 7' '[-2,7]'     # -- before an answer that begins with a minus

Tells right, wrong, unparsed or timed out, the types that the two were read as, and why. Of an
ANSWER with a \boxed{...} in it the format is judged as well. The exit status is 0 if it is right,
1 if it is not, and 2 if the call is wrong.
"""

import argparse
import sys

from capo_ds.config import RewardConfig
from capo_ds.tasks.answers import BOX
from capo_ds.tasks.base import Problem
from capo_ds.tasks.judge import Judge
from capo_ds.tasks.rewards import Verdict, score


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("answer", metavar="ANSWER", help="a box's content, or a whole response")
    parser.add_argument("reference", metavar="REFERENCE", help="as the data set has it")
    defaults = RewardConfig()
    parser.add_argument(
        "--time-limit",
        type=float,
        default=defaults.time_limit,
        help="seconds",
    )
    given = sys.argv[1:]
    if "--" not in given and len(given) > 1 and given[-2] != "--time-limit":
        given.insert(-2, "--")  # so that an answer may begin with a minus
    args = parser.parse_args(given)
    verdict = judged(args.answer, args.reference, args.time_limit)
    print(told(verdict))
    sys.exit(0 if verdict.correct else 1)


def judged(answer: str, reference: str, time_limit: float) -> Verdict:
    """The rule's verdict on a response, or on what would stand in its box."""
    response = answer if BOX in answer else rf"\boxed{{{answer}}}"
    problem = Problem(prompt="", answer=reference)
    return score([response], [problem], Judge(time_limit, workers=1))[0]


def told(verdict: Verdict) -> str:
    """A few lines on a verdict."""
    lines = [f"{verdict.word}: {verdict.reason}"]
    if verdict.formatted:
        lines.append(f"answer read as     {verdict.read_as or 'nothing'}")
        lines.append(f"reference read as  {verdict.reference_as or 'nothing'}")
    return "\n".join([*lines, f"reward of the rule {verdict.reward:+g}"])


if __name__ == "__main__":
    main()
