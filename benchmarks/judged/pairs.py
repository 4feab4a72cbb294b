"""All pairs: families of answers, some forms of each, dressed now and then."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

from judged import expressions, further, gathered, measures, published, quantities, symbols, words
from judged.forms import Answer, Pair
from judged.surface import dressed

FAMILIES: tuple[Callable[[Random], Answer], ...] = (
    quantities.integer, quantities.fractional, quantities.mixed, quantities.decimal,
    quantities.scientific, quantities.power, quantities.huge, quantities.factorial,
    measures.unit, measures.counted, measures.degrees, measures.money, measures.percent,
    measures.time, measures.ratio, measures.based,
    symbols.surd, symbols.quotient_of_surds, symbols.sum_of_surds, symbols.cube_root,
    symbols.pi_multiple, symbols.complex_number, symbols.logarithm, symbols.trigonometric,
    symbols.binomial,
    expressions.linear, expressions.quadratic, expressions.cubic, expressions.two_variables,
    expressions.rational_function, expressions.line, expressions.circle,
    gathered.coordinates, gathered.interval, gathered.ray, gathered.union, gathered.finite_set,
    gathered.listed, gathered.plus_minus, gathered.matrix, gathered.vector,
    words.word, words.name, words.choice, words.zero,
    further.pi_sum, further.nested_root, further.points, further.polar, further.repeating,
    further.letters, further.fraction_polynomial,
)  # fmt: skip
FORMS = 6  # of each truth, drawn of an answer's
DRESSED = 0.25  # share of forms that get markup around them


def make_pairs(seed: int, per_family: int, data: Path) -> list[Pair]:
    """Distinct pairs; the same for the same seed (and the same files of published answers)."""
    pairs: dict[tuple[str, str], Pair] = {}
    for answer in make_answers(seed, per_family, data):
        rng = Random(f"forms/{seed}/{answer.reference}")
        known = {text for _, text in answer.right}
        for equal, forms in ((True, answer.right), (False, answer.wrong)):
            own = [(kind, text) for kind, text in forms if text and (equal or text not in known)]
            for kind, text in rng.sample(own, min(FORMS, len(own))):
                if rng.random() < DRESSED and (outer := dressed(text, rng)):
                    kind, text = f"{kind}; {outer[0]}", outer[1]
                pair = Pair(answer.family, kind, text, answer.reference, equal)
                pairs.setdefault((text, answer.reference), pair)
    return list(pairs.values())


def make_answers(seed: int, per_family: int, data: Path) -> list[Answer]:
    answers = [
        family(Random(f"{family.__name__}/{seed}/{number}"))
        for family in FAMILIES
        for number in range(per_family)
    ]
    return answers + published.answers(4 * per_family, Random(f"published/{seed}"), data)
