"""Diagnostics against their definitions in R^d."""

from __future__ import annotations

import numpy as np
import pytest
from gradient_families import gradients, problem_of

from capo_ds.aggregation import GramProblem, aggregate
from capo_ds.aggregation.diagnostics import Applied, between
from capo_ds.aggregation.diagnostics import diagnose as diagnose_applied


def diagnose(problem, coefficients, xi=None):
    return diagnose_applied(problem, Applied.of([problem], coefficients[None]), xi)


def test_measures_from_vectors():
    rows = gradients("conflict", 20, 3)
    problem = problem_of(rows, positives=8, negatives=9)
    answer = aggregate("capo", problem, radius=0.9)
    measures = diagnose(problem, answer.coefficients, answer.xi)
    vanilla, g = rows.mean(axis=0), answer.coefficients @ rows
    groups = {"positive": slice(0, 8), "negative": slice(8, 17), "all": slice(0, 17)}
    for when, direction in (("before", vanilla), ("after", g)):
        cosines = rows @ direction / np.linalg.norm(rows, axis=1) / np.linalg.norm(direction)
        for name, group in groups.items():
            expected = np.mean(cosines[group] < -1e-6)
            assert measures[f"conflict/{name}_{when}"] == pytest.approx(expected)
        assert measures[f"conflict/cosine_{when}_q50"] == pytest.approx(np.median(cosines[:17]))
    assert measures["conflict/min_alignment"] == pytest.approx((rows[:8] @ g).min(), abs=1e-12)
    assert measures["conflict/max_violation"] == pytest.approx(
        max(0, -(rows[8:17] @ g).min()), abs=1e-12
    )
    cosine = g @ vanilla / np.linalg.norm(g) / np.linalg.norm(vanilla)
    assert measures["conflict/cosine_to_vanilla"] == pytest.approx(cosine)
    assert measures["conflict/norm_ratio"] == pytest.approx(
        np.linalg.norm(g) / np.linalg.norm(vanilla)
    )
    assert measures["conflict/effective_samples"] == pytest.approx(
        answer.xi.sum() ** 2 / (answer.xi**2).sum()
    )
    assert all(isinstance(value, float) for value in measures.values())


def test_capo_removes_the_negatives_conflicts_where_it_can():
    rows = gradients("mixed", 24, 0)
    problem = problem_of(rows, positives=16)
    hard = aggregate("capo", problem, radius=1.0, slack_price=np.inf)
    assert hard.report["hard_feasible"] == 1.0
    measures = diagnose(problem, hard.coefficients, hard.xi)
    assert measures["conflict/negative_before"] > 0.1
    assert measures["conflict/negative_after"] == 0.0


def test_a_constraint_active_at_zero_is_no_conflict():
    rows = np.array([[1.0, 1.0], [1.0, -1e-9]])  # <g, (0, 1)> of the second is rounding
    problem = GramProblem(
        rows @ rows.T, np.array([True, False]), np.array([False, True]), np.array([0.0, 1.0])
    )
    rotated = np.array([[0.0, 1.0], [1.0, -1e-9]])
    problem = GramProblem(rotated @ rotated.T, problem.positive, problem.negative, problem.average)
    assert diagnose(problem, problem.average)["conflict/positive_before"] == 0.0
    rotated[1, 1] = -1e-3
    clear = GramProblem(rotated @ rotated.T, problem.positive, problem.negative, problem.average)
    assert diagnose(clear, clear.average)["conflict/positive_before"] == 1.0


def test_empty_groups_have_no_share():
    rows = gradients("shared", 4, 0)
    measures = diagnose(problem_of(rows, positives=4), np.full(4, 0.25))
    assert "conflict/negative_after" not in measures and "conflict/max_violation" not in measures
    neutral = diagnose(problem_of(rows, positives=0, negatives=0), np.full(4, 0.25))
    assert set(neutral) == {"conflict/cosine_to_vanilla", "conflict/norm_ratio"}


def test_zero_gradients_give_finite_measures():
    problem = problem_of(np.zeros((4, 3)), positives=2)
    measures = diagnose(problem, np.zeros(4), np.zeros(4))
    assert all(np.isfinite(value) for value in measures.values())
    assert measures["conflict/all_after"] == 0.0 and "conflict/effective_samples" not in measures


def test_how_data_sets_pull_on_each_other():
    rows = gradients("conflict", 12, 3)
    problem = problem_of(rows, positives=5, negatives=5)  # the last two have no advantage
    sources = np.array(
        ["hub/a", "b", "hub/a", "b", "c", "hub/a", "b", "c", "c", "b", "b", "silent"]
    )
    names = sorted(set(sources))
    means = {name: rows[sources == name].sum(axis=0) for name in names}
    cosine = lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b)  # noqa: E731
    expected = {}
    for first in names:
        mine = [row for row, name in zip(rows[:10], sources[:10], strict=True) if name == first]
        for second in names:
            pair = f"{first}/{second}".replace("hub/a", "hub-a")
            if first < second:
                expected[f"conflict/between/{pair}"] = cosine(means[first], means[second])
            if mine:
                against = [cosine(row, means[second]) < -1e-6 for row in mine]
                expected[f"conflict/against/{pair}"] = np.mean(against)
    found = between(problem, sources)
    assert found.keys() == expected.keys()
    assert all(found[name] == pytest.approx(value, abs=1e-9) for name, value in expected.items())
    assert 0 < found["conflict/against/b/hub-a"] < 1  # the family has both
