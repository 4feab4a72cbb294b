"""Every degenerate case has one answer, derived in `capo_ds.aggregation.capo`."""

from __future__ import annotations

import numpy as np
import pytest
from gradient_families import gradients, primal_by_cvxpy, problem_of
from scipy.optimize import nnls

from capo_ds.aggregation import GramProblem, aggregate, interior_point, reference, solver

REGIONS = pytest.mark.parametrize("region", ["difference", "norm"])


def vector(problem, rows, **options):
    answer = aggregate("capo", problem, **options)
    assert np.all(np.isfinite(answer.coefficients))
    return answer, answer.coefficients @ rows


def projected_on_cone(point, normals):
    """The g nearest to `point` with <g, normal> >= 0 for each, by nonnegative least squares."""
    weights, _ = nnls(normals.T, -point)
    return point + weights @ normals


def test_no_advantage_at_all():
    rows = gradients("shared", 5, 0)
    problem = problem_of(rows, positives=0, negatives=0)
    answer, g = vector(problem, rows, radius=0.5)
    np.testing.assert_array_equal(answer.coefficients, problem.average)
    assert answer.status == "degenerate"
    for radius, factor in ((0.5, 0.5), (3.0, 1.0)):  # nearest to g_0 in the norm ball
        _, g = vector(problem, rows, radius=radius, region="norm")
        np.testing.assert_allclose(g, factor * problem.average @ rows, rtol=1e-12)


@pytest.mark.parametrize("price", [1.0, 10.0, np.inf])
def test_no_positive_projects_on_the_negatives_constraints(price):
    """Room enough in the ball: the nearest point that raises no negative's likelihood."""
    rows = gradients("orthogonal", 10, 1)
    problem = problem_of(rows, positives=0, negatives=10)
    vanilla = np.linspace(-1.0, 1.0, 10)
    problem = GramProblem(problem.gram, problem.positive, problem.negative, vanilla)
    expected = projected_on_cone(vanilla @ rows, rows)
    assert np.linalg.norm(expected - vanilla @ rows) > 0.1 * problem.vanilla_norm  # conflict
    answer, g = vector(problem, rows, radius=0.95, slack_price=price)
    np.testing.assert_allclose(g, expected, atol=1e-6 * problem.vanilla_norm)
    assert (answer.status, answer.report["hard_feasible"]) == ("degenerate", 1.0)


def test_no_positive_and_no_conflict_leaves_g0():
    rows = gradients("shared", 6, 0)
    problem = problem_of(rows, positives=0, negatives=6)
    _, g = vector(problem, rows, radius=0.5)
    np.testing.assert_allclose(g, problem.average @ rows, atol=1e-9 * problem.vanilla_norm)


def test_no_positive_and_a_small_ball_violates_least():
    rows = np.array([[1.0, 0.0], [0.0, 1.0]])
    problem = GramProblem(rows @ rows.T, np.zeros(2, bool), np.ones(2, bool), np.array([-1.0, -1]))
    answer, g = vector(problem, rows, radius=0.5, slack_price=np.inf)
    # g_0 = (-1, -1): the slack -g_x - g_y falls fastest along (1, 1).
    np.testing.assert_allclose(g, [-0.5, -0.5], atol=1e-9)
    assert answer.status == "infeasible-elastic"
    assert answer.report["slack_total"] == pytest.approx(1.0)


@REGIONS
def test_no_negative(region):
    rows = gradients("mixed", 8, 2)
    problem = problem_of(rows, positives=8)
    answer, g = vector(problem, rows, radius=0.5, region=region, slack_price=np.inf)
    value, expected = primal_by_cvxpy(rows, problem, 0.5, np.inf, region)
    assert answer.report["primal"] == pytest.approx(value, rel=1e-6)
    np.testing.assert_allclose(g, expected, atol=1e-4 * problem.vanilla_norm)


@REGIONS
def test_vanilla_gradient_zero(region):
    rows = np.array([[1.0, 2.0], [-1.0, -2.0]])
    problem = problem_of(rows, positives=1)
    answer, g = vector(problem, rows, region=region)
    np.testing.assert_array_equal(g, [0.0, 0.0])
    assert answer.status == "degenerate"


def test_radius_zero():
    rows = gradients("orthogonal", 6, 0)
    problem = problem_of(rows, positives=3)
    answer, _ = vector(problem, rows, radius=0.0)
    np.testing.assert_array_equal(answer.coefficients, problem.average)
    assert answer.report["primal"] == answer.report["dual"]
    _, g = vector(problem, rows, radius=0.0, region="norm")
    np.testing.assert_array_equal(g, np.zeros(12))


def test_radius_zero_reports_whether_g0_is_feasible():
    rows = np.array([[3.0, 0.0], [-1.0, 0.0]])
    answer, _ = vector(problem_of(rows, positives=1), rows, radius=0.0, slack_price=np.inf)
    assert answer.report["hard_feasible"] == 0.0
    assert answer.report["slack_total"] == pytest.approx(1.0)  # <g_0, g_2> = -1


def test_zero_in_the_hull_takes_the_nearest_optimal_point():
    """g_1 = -g_2 (both positive): alignment 0 is the best, on the line orthogonal to them."""
    rows = np.array([[1.0, 0.0], [-1.0, 0.0], [0.3, 1.0]])
    problem = problem_of(rows, positives=2, negatives=0)
    answer, g = vector(problem, rows, radius=0.9)
    np.testing.assert_allclose(problem.average @ rows, [0.1, 1 / 3])
    np.testing.assert_allclose(g, [0.0, 1 / 3], atol=1e-9)
    assert answer.status == "degenerate" and not answer.on_boundary
    _, g = vector(problem, rows, radius=0.5, region="norm")  # the same, shrunk to C ||g_0||
    np.testing.assert_allclose(g, [0.0, 0.5 * problem.vanilla_norm], atol=1e-9)


@pytest.mark.parametrize("price", [2.0, 10.0, np.inf])
def test_zero_in_the_hull_of_many(price):
    """More samples than dimensions: projection on the cone of points with f >= 0."""
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(12, 4)) + np.array([0.0, 0.0, 0.0, 1.2])
    rows[0] = -rows[1:4].mean(axis=0)  # zero lies in the hull of the first four
    problem = problem_of(rows, positives=4, negatives=0)
    expected = projected_on_cone(problem.average @ rows, rows[:4])
    assert np.linalg.norm(expected - problem.average @ rows) > 1e-2 * problem.vanilla_norm
    _, g = vector(problem, rows, radius=0.99, slack_price=price)
    np.testing.assert_allclose(g, expected, atol=1e-6 * problem.vanilla_norm)


def test_a_zero_gradient_among_the_positives():
    """Its alignment is 0 whatever g is, so every g with no conflict is optimal."""
    rows = np.array([[0.0, 0.0], [1.0, 0.0], [-2.0, 3.0]])
    problem = problem_of(rows, positives=2, negatives=0)
    _, g = vector(problem, rows, radius=0.5)
    np.testing.assert_allclose(g, [0.0, 1.0], atol=1e-9)  # g_0 = (-1/3, 1) on {g_x >= 0}


def test_all_gradients_zero():
    rows = np.zeros((3, 4))
    answer, g = vector(problem_of(rows, positives=2), rows)
    np.testing.assert_array_equal(g, np.zeros(4))
    assert answer.status == "degenerate"


@REGIONS
def test_duplicated_samples_change_nothing_but_the_weights(region):
    rows = gradients("orthogonal", 6, 8)
    problem = problem_of(rows, positives=3)
    _, g = vector(problem, rows, region=region, slack_price=2.0)
    twice = np.vstack([rows[:3], rows[:3], rows[3:]])
    copies = GramProblem(
        twice @ twice.T,
        np.arange(9) < 6,
        np.arange(9) >= 6,
        np.concatenate([problem.average[:3] / 2, problem.average[:3] / 2, problem.average[3:]]),
    )
    _, again = vector(copies, twice, region=region, slack_price=2.0)
    np.testing.assert_allclose(again, g, atol=1e-6 * problem.vanilla_norm)


def test_one_positive_sample():
    rows = np.array([[3.0, 4.0]])
    _, g = vector(problem_of(rows, positives=1), rows, radius=0.5)
    np.testing.assert_allclose(g, 1.5 * rows[0])
    _, g = vector(problem_of(rows, positives=1), rows, radius=0.5, region="norm")
    np.testing.assert_allclose(g, 0.5 * rows[0])


def test_one_negative_sample():
    rows = np.array([[3.0, 4.0]])
    _, g = vector(problem_of(rows, positives=0), rows, radius=0.5)
    np.testing.assert_allclose(g, rows[0], rtol=1e-9)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_spoilt_gradient_is_dropped_and_counted(bad):
    rows = gradients("mixed", 8, 6)
    spoilt = rows.copy()
    spoilt[2, 5] = bad
    with np.errstate(invalid="ignore"):
        problem = problem_of(spoilt, positives=4)
    rows[2] = 0.0
    answer = aggregate("capo", problem)
    assert answer.coefficients[2] == 0.0 and answer.xi[2] == 0.0
    kept = np.arange(8) != 2
    without = GramProblem(
        (rows @ rows.T)[np.ix_(kept, kept)],
        problem.positive[kept],
        problem.negative[kept],
        np.full(7, 1 / 8),
    )
    expected = aggregate("capo", without)
    np.testing.assert_allclose(answer.coefficients[kept], expected.coefficients, atol=1e-9)


def opposed():
    """g_1^+ = (10, 0), g_2^- = (-2, 0), g_0 = (4, 0): <g, g_2> >= 0 asks for g_x <= 0."""
    rows = np.array([[10.0, 0.0], [-2.0, 0.0]])
    return rows, problem_of(rows, positives=1)


def test_hard_and_infeasible_falls_back_as_told():
    rows, problem = opposed()
    answer, g = vector(problem, rows, radius=0.5, slack_price=np.inf)
    # The ball is 2 <= g_x <= 6. At rho = 10: 10 g_x - 10 * 2 g_x falls, so g_x = 2.
    np.testing.assert_allclose(g, [2.0, 0.0], atol=1e-9)
    assert answer.status == "infeasible-elastic"
    assert answer.report["hard_feasible"] == 0.0
    assert answer.report["slack_total"] == pytest.approx(4.0)
    assert answer.report["slack_price"] == 10.0

    answer, g = vector(problem, rows, radius=0.5, slack_price=np.inf, on_infeasible="vanilla")
    np.testing.assert_array_equal(g, [4.0, 0.0])
    assert answer.status == "infeasible-vanilla"


def test_a_cheap_slack_is_used_a_dear_one_is_not():
    rows, problem = opposed()
    _, g = vector(problem, rows, radius=0.5, slack_price=4.9)  # 10 g_x - 4.9 * 2 g_x rises
    np.testing.assert_allclose(g, [6.0, 0.0], atol=1e-9)
    _, g = vector(problem, rows, radius=0.5, slack_price=5.1)
    np.testing.assert_allclose(g, [2.0, 0.0], atol=1e-9)


def test_hard_and_feasible_needs_a_price_above_the_first():
    """g_1^+ = (1, 1), g_2^- = (-1/100, 1/100000): beta = 100 balances it."""
    rows = np.array([[10.0, 1.0], [-0.1, 0.001]])
    problem = GramProblem(
        rows @ rows.T, np.array([True, False]), np.array([False, True]), np.array([1.0, 0.0])
    )
    answer, g = vector(problem, rows, radius=1.0, slack_price=np.inf)
    value, _ = primal_by_cvxpy(rows, problem, 1.0, np.inf)
    assert answer.xi[1] > 10.0
    assert answer.status == "optimal" and answer.report["hard_feasible"] == 1.0
    assert answer.report["primal"] == pytest.approx(value, rel=1e-5)
    assert g @ rows[1] >= -1e-9


def test_clarabel_takes_over_when_the_interior_point_fails(monkeypatch):
    rows = gradients("mixed", 12, 0)
    problem = problem_of(rows, positives=6)
    expected = aggregate("capo", problem)
    assert (expected.status, expected.report["fallback"]) == ("optimal", 0.0)
    first_only = interior_point.iterates

    def stalled(program):
        yield next(first_only(program))

    monkeypatch.setattr(interior_point, "iterates", stalled)
    answer = aggregate("capo", problem)
    assert (answer.status, answer.report["fallback"]) == ("fallback", 1.0)
    np.testing.assert_allclose(
        answer.coefficients @ rows, expected.coefficients @ rows, atol=1e-3 * problem.vanilla_norm
    )
    assert abs(answer.report["gap"]) <= solver.USABLE

    monkeypatch.setattr(reference, "solve_dual", lambda program: None)
    with pytest.raises(solver.SolverError, match="duality gap"):
        aggregate("capo", problem)
