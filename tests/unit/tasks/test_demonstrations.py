from collections import Counter

import pytest

from capo_ds.tasks import Problem, arithmetic, score
from capo_ds.tasks.demonstrations import STYLES, demonstrate

PROBLEM = Problem(prompt="?", answer="16", solution="12+7=19\n19-3=16\n\\boxed{16}")


def test_styles():
    assert {name: tell(PROBLEM) for name, tell in STYLES.items()} == {
        "worked": PROBLEM.solution,
        "direct": r"\boxed{16}",
        "plain": "12+7=19\n19-3=16\nThe answer is 16.",
    }


def test_only_the_plain_style_misses_the_format(judge):
    problems = arithmetic.generate("train", 100, [1, 2, 3], seed=0)
    for style, reward in {"worked": 1.0, "direct": 1.0, "plain": -1.0}.items():
        texts = [text for _, text in demonstrate(problems, {style: 2.0}, seed=0)]
        assert {verdict.reward for verdict in score(texts, problems, judge)} == {reward}


def test_shares_and_seed():
    problems = arithmetic.generate("train", 2000, [1], seed=0)
    shares = {"worked": 1.0, "direct": 3.0}
    drawn = demonstrate(problems, shares, seed=0)
    counts = Counter(text == problem.solution for problem, text in drawn)
    assert 0.2 < counts[True] / 2000 < 0.3
    assert drawn == demonstrate(problems, shares, seed=0)
    assert drawn != demonstrate(problems, shares, seed=1)


def test_problems_without_solution_are_left_out():
    assert demonstrate([Problem("?", "1"), PROBLEM], {"worked": 1.0}, seed=0) == [
        (PROBLEM, PROBLEM.solution)
    ]


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"verbose": 1.0}, r"unknown demonstration styles \['verbose'\]"),
        ({"worked": -1.0, "direct": 2.0}, "must be >= 0"),
        ({"worked": 0.0}, "must be >= 0 and not all 0"),
        ({}, "must be >= 0 and not all 0"),
    ],
)
def test_bad_shares_are_refused(shares, message):
    with pytest.raises(ValueError, match=message):
        demonstrate([PROBLEM], shares, seed=0)
