"""Aggregators that the user brings."""

import numpy as np
import pytest

from capo_ds.aggregation import GramProblem, aggregate, own_aggregator
from capo_ds.config import ConfigError
from capo_ds.own_code import told_whole
from capo_ds.plugins import named

SOURCE = """
from capo_ds.aggregation import Aggregation

def positives(problem):
    return problem.positive / problem.positive.sum()

def short(problem):
    return [1.0]

def endless(problem):
    return problem.average / 0.0

def ragged(problem):
    return Aggregation([[1.0], [1.0, 2.0]])

def broken(problem):
    return problem.average @ problem.nothing if hasattr(problem, "nothing") else {}["key"]
"""


@pytest.fixture
def problem():
    gradients = np.random.default_rng(0).normal(size=(4, 6))
    positive = np.array([True, False, True, False])
    return GramProblem(gradients @ gradients.T, positive, ~positive, np.full(4, 0.25))


@pytest.fixture
def file(tmp_path):
    (tmp_path / "mine.py").write_text(SOURCE)
    return tmp_path / "mine.py"


def own(name):
    return own_aggregator(name, named("aggregator", name))


def test_its_coefficients_are_applied(file, problem):
    result = aggregate(own(f"{file}:positives"), problem)
    np.testing.assert_array_equal(result.coefficients, [0.5, 0.0, 0.5, 0.0])


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("short", r"must give 4 finite numbers.* gave an array \(1,\)"),
        ("endless", "inf"),
        ("ragged", "must give 4 finite numbers"),
        ("broken", "KeyError: 'key'"),
    ],
)
def test_what_it_must_not_do_is_told_with_its_name(file, problem, name, words):
    with pytest.raises(RuntimeError, match=f"{name}: .*{words}") as error:
        aggregate(own(f"{file}:{name}"), problem)
    assert told_whole(error.value)


def test_a_function_that_is_not_there_is_a_bad_setting(file, problem):
    with pytest.raises(ConfigError, match=r"aggregator: .* has no function 'other'"):
        own(f"{file}:other")


def test_options_reach_it_by_keyword(problem):
    scaled = own_aggregator("scaled", lambda problem, factor: factor * problem.average)
    np.testing.assert_array_equal(aggregate(scaled, problem, factor=2.0).coefficients, [0.5] * 4)
