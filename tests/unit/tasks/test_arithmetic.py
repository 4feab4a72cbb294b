import re
from dataclasses import replace

import pytest

from capo_ds.config import BenchmarkConfig, TaskConfig
from capo_ds.tasks import arithmetic, load_benchmark, load_problems, score
from capo_ds.tasks.answers import find_boxes

LEVELS = sorted(arithmetic.LEVELS)


@pytest.fixture(scope="module")
def train():
    return arithmetic.generate("train", 3000, LEVELS, seed=0)


@pytest.fixture(scope="module")
def held_out():
    return arithmetic.generate("test", 500, LEVELS, seed=1)


def test_reference_solutions_score_one(train, judge):
    assert {verdict.reward for verdict in score([p.solution for p in train], train, judge)} == {1.0}


def test_equations_of_solutions_hold_and_lead_to_the_answer(train):
    for problem in train:
        *equations, box = problem.solution.split("\n")
        result = None
        for equation in equations:
            left, sign, right, value = re.fullmatch(r"(\d+)([-+*/])(\d+)=(\d+)", equation).groups()
            assert result is None or left == result
            a, b, result = int(left), int(right), value
            assert {"+": a + b, "-": a - b, "*": a * b, "/": a / b}[sign] == int(value)
        assert find_boxes(box)[0].content == problem.answer == result


def test_numbers_of_the_chain_stand_in_the_question_in_order(train):
    for problem in train:
        assert re.findall(r"\d+", problem.prompt) == re.findall(
            r"\d+", problem.columns["expression"]
        )


def test_held_outs_share_no_chain_of_operations_whatever_the_seeds(train, held_out):
    chains = {problem.columns["expression"] for problem in train}
    for seed in (0, 7):
        tested = arithmetic.generate("test", 500, LEVELS, seed=seed)
        assert chains.isdisjoint(problem.columns["expression"] for problem in tested)
    assert {p.prompt for p in held_out}.isdisjoint(p.prompt for p in train)


def test_problems_are_distinct_and_levels_balanced(train):
    assert len({p.prompt for p in train}) == len(train)
    counts = [sum(p.columns["level"] == level for p in train) for level in LEVELS]
    assert counts == [len(train) // len(LEVELS)] * len(LEVELS)


def test_seed_decides():
    first, again, other = (
        arithmetic.generate("train", 50, [1, 2], seed=seed) for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other


def test_problems_stay_the_same_between_versions():
    """A change here makes old checkpoints, logs and the shipped model incomparable."""
    problem = arithmetic.generate("test", 1, [2], seed=0)[0]
    assert problem.columns["expression"] == "4+37-33"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dev", 5, [1], 0), "unknown split 'dev'"),
        (("train", 5, [1, 9], 0), r"unknown arithmetic levels \[9\]"),
        (("train", 5, [], 0), "unknown arithmetic levels"),
    ],
)
def test_bad_requests_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        arithmetic.generate(*arguments)


def test_more_problems_than_exist_are_refused(monkeypatch):
    monkeypatch.setattr(arithmetic, "_tell", lambda *_: arithmetic.Problem("?", "1"))
    with pytest.raises(ValueError, match="could not draw 5 distinct train problems"):
        arithmetic.generate("train", 5, [1], 0)


def test_load_problems_follows_the_config():
    config = TaskConfig(train_problems=30, test_problems=10, levels=[2], seed=5)
    for split, count in (("train", 30), ("test", 10)):
        generated = arithmetic.generate(split, count, [2], 5)
        expected = [replace(problem, source="arithmetic") for problem in generated]
        assert load_problems(config, split) == expected


def test_the_sizes_that_hold_without_a_number():
    assert len(load_problems(TaskConfig(), "train")) == 4096
    assert len(load_problems(TaskConfig(), "test")) == 256
    assert len(load_benchmark(BenchmarkConfig(levels=[4]), limit=9)) == 9


def test_what_is_asked_for_changes_question_and_box_and_nothing_else():
    chain = arithmetic.Chain(12, (("+", 7), ("-", 3)))
    steps = "12+7=19\n19-3=16\n"
    for asks, answer in (("total", "16"), ("before", "19"), ("backwards", "61")):
        assert arithmetic.answer_of(chain, asks) == answer
        assert arithmetic.worked_solution(chain, asks) == steps + rf"\boxed{{{answer}}}"
    one_step = arithmetic.Chain(20, (("+", 10),))
    assert arithmetic.answer_of(one_step, "before") == "20"
    assert arithmetic.answer_of(one_step, "backwards") == "03"


@pytest.mark.parametrize("asks", arithmetic.ASKS)
def test_solutions_are_right_whatever_is_asked_for(asks, judge):
    problems = arithmetic.generate("train", 100, sorted(arithmetic.LEVELS), 1, asks)
    verdicts = score([problem.solution for problem in problems], problems, judge)
    assert all(verdict.correct for verdict in verdicts)
    chains = {p.columns["expression"] for p in arithmetic.generate("test", 200, [2], 1, asks)}
    assert not chains & {p.columns["expression"] for p in arithmetic.generate("train", 999, [2], 1)}


def test_each_question_is_its_own():
    asked = {
        asks: {
            p.prompt.rpartition(". ")[2] for p in arithmetic.generate("train", 300, [2], 0, asks)
        }
        for asks in arithmetic.ASKS
    }
    assert not asked["total"] & asked["before"] and not asked["before"] & asked["backwards"]
