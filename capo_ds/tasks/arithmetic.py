r"""Generated task: short arithmetic word problems with integer answers.

A problem is a chain of operations (`12+7-3`) told as a story. Levels of difficulty:
    1  one addition or subtraction
    2  two additions or subtractions
    3  a product, then one addition or subtraction
    4  three additions or subtractions
    5  a product, one addition or subtraction, then an equal sharing without remainder

The worked solution carries out one operation a line and boxes the last result:
    12+7=19
    19-3=16
    \boxed{16}

What is asked for (`asks`) may differ between data sets, so that one may pull a model away from the
other: each story is worked through to its end in the same way, and another number is boxed.
    total      the number at the end: 16
    before     the number before the last operation: 19
    backwards  the digits of the number at the end in reverse order: 61

Train and test are disjoint whatever the seeds: a chain of operations belongs to the test split
or to the train split by its hash, so the numbers of a test problem never occur together in a
train problem, not even under other names.
"""

import hashlib
import random
from dataclasses import dataclass

from capo_ds.tasks.base import Problem, Wanted

SIZES = {"train": 4096, "test": 256}  # problems of a split, where the config names no number
TEST_SHARE = 8  # one chain of operations in so many is held out for the test split
MAX_START = 60  # largest number a story starts with
MAX_OPERAND = 40  # largest number added or taken away
MAX_FACTOR = 9
MIN_NUMBER = 2  # so that plurals are right

# The operations of each level; "~" stands for an addition or a subtraction.
LEVELS: dict[int, str] = {1: "~", 2: "~~", 3: "*~", 4: "~~~", 5: "*~/"}

NAMES = {
    "he": ("Tom", "Ben", "Sam", "Leo", "Max", "Jack", "Omar", "Paul"),
    "she": ("Ann", "Mia", "Eva", "Zoe", "Lily", "Rosa", "Nina", "Emma"),
}
OBJECTS = (
    "apples", "pears", "eggs", "books", "coins", "cards", "pens", "shells",
    "stamps", "marbles", "toys", "balls", "cups", "plums", "nuts", "stones",
)  # fmt: skip
CONTAINERS = ("boxes", "bags", "jars", "packs")

# {who} the main person's name, {he}/{him} the pronouns, {friend} another name, {n} the operand.
STARTS = ("{who} has {n} {things}.", "{who} starts with {n} {things}.", "{who} owns {n} {things}.")
PRODUCTS = (
    "{who} has {k} {containers} of {n} {things}.",
    "{who} buys {k} {containers} with {n} {things} in each.",
)
ADDITIONS = (
    "{he} buys {n} more.",
    "{he} finds {n} more.",
    "{he} gets {n} more from {friend}.",
    "{friend} gives {him} {n} more.",
)
SUBTRACTIONS = (
    "{he} loses {n} of them.",
    "{he} sells {n}.",
    "{he} gives {n} to {friend}.",
    "{friend} takes {n}.",
)
SHARINGS = ("{he} shares them equally among {n} friends.",)
QUESTIONS = ("How many {things} does {who} have now?", "How many {things} has {who} in the end?")
SHARE_QUESTIONS = ("How many {things} does each friend get?",)
BEFORE_QUESTIONS = (
    "How many {things} did {who} have before that?",
    "How many {things} had {who} just before?",
)
BACKWARDS = "{question} Write it backwards."
ASKS = ("total", "before", "backwards")

_EVENTS = {"+": ADDITIONS, "-": SUBTRACTIONS, "/": SHARINGS}


@dataclass(frozen=True)
class Chain:
    """Numbers joined by operations from left to right: (12, ("+", 7), ("-", 3))."""

    start: int
    steps: tuple[tuple[str, int], ...]

    @property
    def expression(self) -> str:
        return str(self.start) + "".join(f"{sign}{operand}" for sign, operand in self.steps)

    def results(self) -> list[int]:
        """The value after each step; division is exact."""
        values, value = [], self.start
        for sign, operand in self.steps:
            value = _apply(value, sign, operand)
            values.append(value)
        return values


def task(wanted: Wanted) -> list[Problem]:
    """As many problems as are wanted, or `SIZES`. Raises as `generate` does."""
    settings = wanted.settings
    count = wanted.limit or SIZES[wanted.split]
    return generate(wanted.split, count, settings.levels, settings.seed, settings.asks)


def generate(
    split: str, count: int, levels: list[int], seed: int, asks: str = "total"
) -> list[Problem]:
    """`count` distinct problems of a split ("train" or "test"), as equally many of each level.

    asks: for what, one of `ASKS`.

    Raises:
        ValueError: unknown split or level, or fewer distinct problems exist than asked for.
    """
    if split not in ("train", "test"):
        raise ValueError(f"unknown split {split!r}: use 'train' or 'test'")
    if unknown := sorted(set(levels) - set(LEVELS)) or not levels:
        raise ValueError(f"unknown arithmetic levels {unknown}: choose among {sorted(LEVELS)}")
    rng = random.Random(f"arithmetic/{split}/{seed}")
    problems: dict[str, Problem] = {}
    attempts_left = 100 * TEST_SHARE * (count + 10)
    while len(problems) < count:
        if (attempts_left := attempts_left - 1) < 0:
            raise ValueError(f"could not draw {count} distinct {split} problems of levels {levels}")
        level = levels[len(problems) % len(levels)]
        chain = _draw_chain(rng, level)
        if chain is not None and is_test(chain) == (split == "test"):
            problem = _tell(rng, chain, level, asks)
            problems.setdefault(problem.prompt, problem)
    shuffled = list(problems.values())
    rng.shuffle(shuffled)
    return shuffled


def is_test(chain: Chain) -> bool:
    """Whether a chain of operations is held out; depends on nothing but the chain."""
    digest = hashlib.blake2b(chain.expression.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % TEST_SHARE == 0


def answer_of(chain: Chain, asks: str) -> str:
    """What is to be boxed."""
    total = str(chain.results()[-1])
    if asks == "before":
        return str([chain.start, *chain.results()][-2])
    return total[::-1] if asks == "backwards" else total


def worked_solution(chain: Chain, asks: str = "total") -> str:
    """One equation a line for each step, then the boxed answer."""
    results = chain.results()
    lefts = [chain.start, *results[:-1]]
    equations = [
        f"{left}{sign}{operand}={result}"
        for left, (sign, operand), result in zip(lefts, chain.steps, results, strict=True)
    ]
    return "\n".join([*equations, rf"\boxed{{{answer_of(chain, asks)}}}"])


def _apply(value: int, sign: str, operand: int) -> int:
    if sign == "+":
        return value + operand
    if sign == "-":
        return value - operand
    return value * operand if sign == "*" else value // operand


def _draw_chain(rng: random.Random, level: int) -> Chain | None:
    """A random chain of the level, or None where the numbers drawn leave no valid next step."""
    signs = LEVELS[level]
    product = signs[0] == "*"
    value = start = rng.randint(MIN_NUMBER, MAX_FACTOR if product else MAX_START)
    steps = []
    for sign in signs:
        sign = rng.choice("+-") if sign == "~" else sign
        operand = _draw_operand(rng, sign, value)
        if operand is None:
            return None
        steps.append((sign, operand))
        value = _apply(value, sign, operand)
    return Chain(start, tuple(steps))


def _draw_operand(rng: random.Random, sign: str, value: int) -> int | None:
    """An operand that keeps the result an integer of at least MIN_NUMBER, if there is one."""
    if sign == "+":
        return rng.randint(MIN_NUMBER, MAX_OPERAND)
    if sign == "*":
        return rng.randint(MIN_NUMBER, MAX_FACTOR)
    if sign == "-":
        largest = min(MAX_OPERAND, value - MIN_NUMBER)
        return rng.randint(MIN_NUMBER, largest) if largest >= MIN_NUMBER else None
    divisors = [k for k in range(2, MAX_FACTOR + 1) if value % k == 0 and value // k >= MIN_NUMBER]
    return rng.choice(divisors) if divisors else None


def _tell(rng: random.Random, chain: Chain, level: int, asks: str) -> Problem:
    """Tell a chain as a story, and ask."""
    pronoun = rng.choice(("he", "she"))
    who = rng.choice(NAMES[pronoun])
    things = rng.choice(OBJECTS)
    words = {
        "who": who,
        "he": pronoun.capitalize(),
        "him": {"he": "him", "she": "her"}[pronoun],
        "things": things,
    }
    sentences = []
    steps = chain.steps
    if steps[0][0] == "*":
        opening = rng.choice(PRODUCTS)
        containers = rng.choice(CONTAINERS)
        sentences.append(
            opening.format(k=chain.start, n=steps[0][1], containers=containers, **words)
        )
        steps = steps[1:]
    else:
        sentences.append(rng.choice(STARTS).format(n=chain.start, **words))
    for sign, operand in steps:
        friend = rng.choice([n for names in NAMES.values() for n in names if n != who])
        sentences.append(rng.choice(_EVENTS[sign]).format(n=operand, friend=friend, **words))
    sentences.append(_question(rng, chain, asks).format(**words))
    return Problem(
        prompt=" ".join(sentences),
        answer=answer_of(chain, asks),
        solution=worked_solution(chain, asks),
        columns={"level": level, "expression": chain.expression},
    )


def _question(rng: random.Random, chain: Chain, asks: str) -> str:
    if asks == "before":
        return rng.choice(BEFORE_QUESTIONS)
    question = rng.choice(SHARE_QUESTIONS if chain.steps[-1][0] == "/" else QUESTIONS)
    return BACKWARDS.replace("{question}", question) if asks == "backwards" else question
