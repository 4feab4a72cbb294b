"""CAPO against the primal program in R^d, its optimality conditions, and its invariances."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from gradient_families import FAMILIES, draws, gradients, primal_by_cvxpy, problem_of, unit_of
from hypothesis import given, settings
from hypothesis import strategies as st

from capo_ds.aggregation import GramProblem, aggregate, reference
from capo_ds.aggregation.program import ConeProgram

RADII = st.sampled_from([0.1, 0.5, 0.9, 1.0, 1.7])
PRICES = st.sampled_from([0.3, 3.0, 10.0, 300.0])
REGIONS = st.sampled_from(["difference", "norm"])


def program_of(problem, radius, price, region):
    """The cone program in sample order positives, negatives (as `problem_of` lays them out)."""
    used = np.flatnonzero(problem.positive | problem.negative)
    base = problem.average if region == "difference" else np.zeros(problem.count)
    return ConeProgram(
        problem.gram[np.ix_(used, used)],
        (problem.gram @ base)[used],
        radius * problem.vanilla_norm,
        int(problem.positive.sum()),
        price,
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("radius", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("price", [3.0, np.inf])
@pytest.mark.parametrize("region", ["difference", "norm"])
def test_agrees_with_the_primal_program(family, radius, price, region):
    rows = gradients(family, 14, seed=3)
    problem = problem_of(rows, positives=6, negatives=6)
    value, g = primal_by_cvxpy(rows, problem, radius, price, region)
    answer = aggregate("capo", problem, radius=radius, slack_price=price, region=region)
    if value is None:
        assert answer.report["hard_feasible"] == 0.0
        assert answer.status == "infeasible-elastic"
        return
    unit = unit_of(rows, problem, radius)
    assert answer.report["primal"] == pytest.approx(value, abs=1e-7 * unit)
    assert answer.report["dual"] == pytest.approx(value, abs=1e-7 * unit)
    if answer.on_boundary:  # elsewhere the optimal point is not unique
        size = np.linalg.norm(g) + problem.vanilla_norm
        np.testing.assert_allclose(answer.coefficients @ rows, g, atol=2e-3 * size)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("count", [40, 200])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_dual_value_agrees_with_cvxpy(family, count, share, scale):
    rows = scale * gradients(family, count, seed=1)
    problem = problem_of(rows, positives=max(1, int(share * count)))
    for radius in (0.1, 0.5, 1.0):
        answer = aggregate("capo", problem, radius=radius)
        scaled, _ = program_of(problem, radius, 10.0, "difference").normalised()
        xi = reference.solve_dual(scaled)
        ours, theirs = scaled.dual_value(answer.xi), scaled.dual_value(xi)
        assert ours <= theirs + 1e-7 * scaled.cancellation_scale(xi)
        assert ours >= theirs - 1e-6 * scaled.cancellation_scale(xi)


@given(draws(), RADII, PRICES, REGIONS)
@settings(deadline=None, max_examples=150)
def test_optimality_conditions(draw, radius, price, region):
    """Feasible xi, complementary slackness, g~ along dg, and a closed gap."""
    rows, positives = draw
    problem = problem_of(rows, positives)
    answer = aggregate("capo", problem, radius=radius, slack_price=price, region=region)
    program = program_of(problem, radius, price, region)
    unit = program.cancellation_scale(answer.xi)
    assert np.all(answer.xi >= 0.0)
    assert answer.xi[:positives].sum() == pytest.approx(1.0, abs=1e-12)
    assert np.all(answer.xi[positives:] <= program.price)
    assert abs(answer.report["gap"]) <= 1e-7

    products = problem.gram @ answer.coefficients
    threshold = products[:positives].min()
    assert answer.xi[:positives] @ (products[:positives] - threshold) <= 1e-6 * unit
    beta, negative = answer.xi[positives:], products[positives:]
    assert beta @ np.maximum(negative, 0.0) <= 1e-6 * unit
    assert (program.price - beta) @ np.maximum(-negative, 0.0) <= 1e-6 * unit
    if answer.on_boundary:
        offset = (answer.coefficients - answer.base) @ rows
        dg = answer.xi @ rows
        cosine = offset @ dg / np.linalg.norm(offset) / np.linalg.norm(dg)
        assert cosine == pytest.approx(1.0, abs=1e-8)
        assert np.linalg.norm(offset) == pytest.approx(program.radius, rel=1e-8)


@given(draws(), RADII, st.sampled_from([1.0, 10.0, np.inf]))
@settings(deadline=None, max_examples=150)
def test_stays_in_the_trust_region(draw, radius, price):
    """||g~ - g_0|| <= C ||g_0||, the inequality behind the convergence theorem."""
    rows, positives = draw
    problem = problem_of(rows, positives)
    answer = aggregate("capo", problem, radius=radius, slack_price=price)
    distance = np.linalg.norm((answer.coefficients - problem.average) @ rows)
    assert distance <= radius * problem.vanilla_norm * (1.0 + 1e-7)
    limited = aggregate("capo", problem, radius=radius, slack_price=price, region="norm")
    length = np.linalg.norm(limited.coefficients @ rows)
    assert length <= radius * problem.vanilla_norm * (1.0 + 1e-7)


@given(draws(), RADII, REGIONS, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=80)
def test_permutation_permutes_the_answer(draw, radius, region, random):
    rows, positives = draw
    order = list(range(len(rows)))
    random.shuffle(order)
    problem = problem_of(rows, positives)
    shuffled = GramProblem(
        problem.gram[np.ix_(order, order)], problem.positive[order], problem.negative[order]
    )
    first = aggregate("capo", problem, radius=radius, region=region)
    second = aggregate("capo", shuffled, radius=radius, region=region)
    unit = unit_of(rows, problem, radius) * max(1.0, first.xi.sum())
    assert second.report["dual"] == pytest.approx(first.report["dual"], abs=1e-7 * unit)
    if first.on_boundary and second.on_boundary:
        np.testing.assert_allclose(
            second.coefficients @ rows[order],
            first.coefficients @ rows,
            atol=1e-4 * (1.0 + radius) * problem.vanilla_norm,
        )


@given(draws(), RADII, REGIONS, st.integers(-12, 12))
@settings(deadline=None, max_examples=80)
def test_scaling_all_gradients_scales_the_answer(draw, radius, region, exponent):
    """Coefficients have no unit: they are the same for 1e-12 and 1e+12 times the gradients."""
    rows, positives = draw
    factor = 2.0 ** (3 * exponent)  # a power of two, so that the rounding is the same
    first = aggregate("capo", problem_of(rows, positives), radius=radius, region=region)
    second = aggregate("capo", problem_of(factor * rows, positives), radius=radius, region=region)
    assert second.status == first.status
    unit = unit_of(rows, problem_of(rows, positives), radius)
    shift = (second.coefficients - first.coefficients) @ rows
    assert np.linalg.norm(shift) <= 1e-4 * unit / np.linalg.norm(rows, axis=1).max()
    assert second.report["dual"] / factor**2 == pytest.approx(
        first.report["dual"], abs=1e-7 * unit * max(1.0, first.xi.sum())
    )


@given(draws(), RADII)
@settings(deadline=None, max_examples=60)
def test_a_higher_price_leaves_less_slack_and_less_alignment(draw, radius):
    """Along growing rho the slack falls to its least, where the hard program takes over."""
    rows, positives = draw
    problem = problem_of(rows, positives)
    prices = [0.1, 1.0, 10.0, 100.0, 1e4]
    reports = [
        aggregate("capo", problem, radius=radius, slack_price=price).report for price in prices
    ]
    unit = unit_of(rows, problem, radius)
    for price, lower, higher in zip(prices, reports, reports[1:], strict=False):
        assert higher["slack_total"] <= lower["slack_total"] + 1e-6 * unit / min(price, 1.0)
        assert higher["primal"] <= lower["primal"] + 1e-6 * unit


@pytest.mark.parametrize("family", ["orthogonal", "shared", "heavy", "conflict"])
def test_elastic_solution_is_continuous_up_to_the_hard_one(family):
    """Once rho exceeds the hard program's largest beta, nothing changes any more."""
    rows = gradients(family, 12, seed=5)
    problem = problem_of(rows, positives=7)
    hard = aggregate("capo", problem, radius=1.0, slack_price=np.inf)
    assert hard.report["hard_feasible"] == 1.0 and hard.status == "optimal"
    enough = hard.xi[7:].max() + 1e-3
    for price in (enough, 2 * enough, 1e3 * enough):
        elastic = aggregate("capo", problem, radius=1.0, slack_price=price)
        np.testing.assert_allclose(
            elastic.coefficients @ rows, hard.coefficients @ rows, atol=1e-6 * problem.vanilla_norm
        )
    near = aggregate("capo", problem, radius=1.0, slack_price=enough * (1 + 1e-6))
    just_above = aggregate("capo", problem, radius=1.0, slack_price=enough)
    gap = np.linalg.norm((near.coefficients - just_above.coefficients) @ rows)
    assert gap <= 1e-4 * problem.vanilla_norm


def test_small_changes_of_the_price_make_small_changes_of_the_answer():
    rows = gradients("mixed", 20, seed=2)
    problem = problem_of(rows, positives=8)
    path = [
        aggregate("capo", problem, radius=0.5, slack_price=price).coefficients @ rows
        for price in np.geomspace(0.05, 20.0, 200)
    ]
    jumps = [np.linalg.norm(b - a) for a, b in pairwise(path)]
    assert max(jumps) <= 0.1 * problem.vanilla_norm
    assert np.linalg.norm(path[-1] - path[0]) > 0.1 * problem.vanilla_norm  # the price matters


def test_hard_feasibility_agrees_with_cvxpy():
    verdicts = set()
    for seed in range(12):
        rows = gradients("mixed", 16, seed)
        problem = problem_of(rows, positives=8)
        value, _ = primal_by_cvxpy(rows, problem, 0.2, np.inf)
        for price in (1.0, 10.0, np.inf):
            report = aggregate("capo", problem, radius=0.2, slack_price=price).report
            assert report["hard_feasible"] == float(value is not None)
        verdicts.add(value is not None)
    assert verdicts == {True, False}


class TestWorkedExample:
    """The numbers of docs/mathematics.md: g_1^+ = (7, -2), g_2^- = (-1, 2), C = 1/2."""

    rows = np.array([[7.0, -2.0], [-1.0, 2.0]])

    def answer(self, **options):
        answer = aggregate("capo", problem_of(self.rows, positives=1), radius=0.5, **options)
        return answer, answer.coefficients @ self.rows

    @pytest.mark.parametrize("price", [10.0, np.inf])
    def test_by_hand(self, price):
        answer, g = self.answer(slack_price=price)
        np.testing.assert_allclose(answer.xi, [1.0, 7.0], rtol=1e-9)
        np.testing.assert_allclose(g, [3.0, 1.5], rtol=1e-9)
        np.testing.assert_allclose(answer.coefficients, [0.625, 1.375], rtol=1e-9)
        assert answer.report["primal"] == pytest.approx(18.0)
        assert answer.report["dual"] == pytest.approx(18.0)

    def test_with_a_cheap_slack(self):
        answer, g = self.answer(slack_price=3.0)
        np.testing.assert_allclose(g, [3.0 + 1.5 / 2**0.5, 1.5 / 2**0.5], rtol=1e-9)
        assert answer.report["slack_total"] == pytest.approx(3.0 - 1.5 / 2**0.5)
        assert answer.report["hard_feasible"] == 1.0

    def test_in_the_norm_ball(self):
        answer, g = self.answer(region="norm")
        np.testing.assert_allclose(answer.xi, [1.0, 2.2], rtol=1e-9)
        np.testing.assert_allclose(g, 1.5 / 5**0.5 * np.array([2.0, 1.0]), rtol=1e-9)


def test_neutral_samples_move_g0_but_not_the_program():
    rows = gradients("orthogonal", 9, seed=0)
    answer = aggregate("capo", problem_of(rows, positives=4, negatives=3))
    np.testing.assert_allclose(answer.coefficients[7:], 1 / 9)
    assert np.all(answer.xi[7:] == 0.0)
    assert np.linalg.norm(answer.coefficients[:7] - 1 / 9) > 0.0


def test_true_norms_replace_sketched_ones():
    """With Q from a sketch, C ||g_0|| / ||dg|| must come from the full vectors."""
    rows = gradients("mixed", 10, seed=4)
    sketch = rows @ np.random.default_rng(0).choice([-1.0, 1.0], size=(20, 64)) / 8.0
    answer = aggregate("capo", problem_of(sketch, positives=5), radius=0.5)
    vanilla, dg = np.full(10, 0.1) @ rows, answer.xi @ rows
    coefficients = answer.recovered(np.linalg.norm(vanilla), np.linalg.norm(dg))
    expected = vanilla + 0.5 * np.linalg.norm(vanilla) * dg / np.linalg.norm(dg)
    np.testing.assert_allclose(coefficients @ rows, expected, rtol=1e-12, atol=1e-14)
    sketched = answer.recovered(
        np.linalg.norm(np.full(10, 0.1) @ sketch), np.linalg.norm(answer.xi @ sketch)
    )
    np.testing.assert_allclose(sketched, answer.coefficients, rtol=1e-9, atol=1e-12)


def test_a_float32_gram_matrix_of_more_samples_than_rank():
    """Its smallest eigenvalues are negative noise; the answer is that of the float64 one."""
    rows = gradients("low_rank", 90, seed=7)
    gram32 = (rows.astype(np.float32) @ rows.astype(np.float32).T).astype(np.float64)
    assert np.linalg.eigvalsh(gram32)[0] < 0.0
    positive = np.arange(90) < 45
    exact = aggregate("capo", problem_of(rows, positives=45), radius=0.5)
    noisy = aggregate("capo", GramProblem(gram32, positive, ~positive), radius=0.5)
    difference = np.linalg.norm((noisy.coefficients - exact.coefficients) @ rows)
    assert difference <= 1e-2 * np.linalg.norm(exact.coefficients @ rows)


@given(
    st.sampled_from(FAMILIES),
    st.integers(1, 40),
    st.integers(0, 10**6),
    st.sampled_from([0.0, 1e-6, 0.1, 0.5, 1.0, 10.0]),
    st.sampled_from([1e-3, 1.0, 10.0, 1e3, np.inf]),
    REGIONS,
)
@settings(deadline=None, max_examples=200)
def test_any_problem_has_a_certified_answer(family, count, seed, radius, price, region):
    """Zero and tiny gradients, few dimensions, odd weights, any mix of signs; no fallback."""
    rng = np.random.default_rng(seed)
    rows = gradients(family, count, seed)[:, : rng.integers(1, 2 * count + 1)]
    rows[rng.random(count) < 0.1] *= rng.choice([0.0, 1e-5])
    sign = rng.choice([-1, 0, 1], size=count, p=rng.dirichlet(np.ones(3)))
    weights = rng.normal(size=count) / count
    problem = GramProblem(rows @ rows.T, sign > 0, sign < 0, weights)
    with np.errstate(all="raise", under="ignore"):
        answer = aggregate("capo", problem, radius=radius, slack_price=price, region=region)
    assert np.all(np.isfinite(answer.coefficients))
    assert abs(answer.report["gap"]) <= 1e-6
    distance = np.linalg.norm((answer.coefficients - answer.base) @ rows)
    largest = np.linalg.norm(rows, axis=1).max()
    assert distance <= radius * problem.vanilla_norm * (1 + 1e-6) + 1e-9 * largest


@given(
    st.sampled_from(FAMILIES),
    st.integers(1, 24),
    st.integers(0, 10**6),
    st.sampled_from([0.1, 0.5, 1.0, 2.0]),
    st.sampled_from([10.0, np.inf]),
    REGIONS,
    st.sampled_from(["elastic", "vanilla"]),
    st.sampled_from([1e-30, 1e-6, 1.0, 1e20]),
)
@settings(deadline=None, max_examples=200)
def test_no_answer_leaves_its_ball(family, count, seed, radius, price, region, answer, scale):
    """Tiny negatives, opposite ones, few dimensions: whatever the status."""
    rng = np.random.default_rng(seed)
    rows = gradients(family, count, seed)[:, : rng.integers(1, 2 * count + 1)]
    sign = rng.choice([-1, 1], size=count)
    rows[(sign < 0) & (rng.random(count) < 0.5)] *= rng.choice([1e-6, 1.0, 1e3])
    rows *= scale
    problem = GramProblem(rows @ rows.T, sign > 0, sign < 0)
    result = aggregate(
        "capo",
        problem,
        radius=radius,
        slack_price=price,
        region=region,
        on_infeasible=answer,
    )
    centre = problem.average @ rows if region == "difference" else 0.0
    distance = np.linalg.norm(result.coefficients @ rows - centre)
    largest = np.linalg.norm(rows, axis=1).max()
    allowed = 1e-7 * radius * problem.vanilla_norm + 1e-9 * largest
    assert distance <= radius * problem.vanilla_norm + allowed
    if region == "norm" or radius >= 1.0:  # g = 0 violates nothing
        assert result.report["hard_feasible"] == 1.0


class TestNormBallIsAlwaysFeasible:
    """A negative of length 1e-5 needs a price of 1e5; the hard program has no unit of its own."""

    rows = np.array([[7.0, -2.0], [-1e-5, 2e-5]])

    @pytest.mark.parametrize("on_infeasible", ["elastic", "vanilla"])
    @pytest.mark.parametrize("shrink", [1.0, 1e-5, 1e3])
    def test_hard_program(self, on_infeasible, shrink):
        rows = self.rows * np.array([[1.0], [shrink]])
        problem = problem_of(rows, positives=1)
        answer = aggregate(
            "capo",
            problem,
            radius=0.5,
            slack_price=np.inf,
            region="norm",
            on_infeasible=on_infeasible,
        )
        assert (answer.status, answer.report["hard_feasible"]) == ("optimal", 1.0)
        # On the line -x + 2y = 0, as long as the ball allows.
        expected = 0.5 * problem.vanilla_norm * np.array([2.0, 1.0]) / 5**0.5
        np.testing.assert_allclose(answer.coefficients @ rows, expected, rtol=1e-7)


@pytest.mark.parametrize("radius", [0.1, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("region", ["difference", "norm"])
@pytest.mark.parametrize("price", [10.0, np.inf])
@pytest.mark.parametrize(("count", "rank"), [(48, 2), (300, 20)])
def test_float32_gram_matrix_far_above_the_rank(count, rank, radius, region, price):
    """One matrix: the answer, its certificate and its status are those of the exact one."""
    rows = np.random.default_rng(rank).normal(size=(count, rank)).astype(np.float32)
    positive = np.arange(count) < count // 2
    rounded = GramProblem(rows @ rows.T, positive, ~positive)
    exact = problem_of(rows.astype(np.float64), count // 2)
    options = {"radius": radius, "region": region, "slack_price": price}
    noisy, clean = (aggregate("capo", p, **options) for p in (rounded, exact))
    assert noisy.status == clean.status != "inaccurate"
    assert abs(noisy.report["gap"]) <= 1e-7 and abs(clean.report["gap"]) <= 1e-7
    assert 0.0 < noisy.report["gram_shift"] < 1e-5 and clean.report["gram_shift"] == 0.0
    shift = np.linalg.norm((noisy.coefficients - clean.coefficients) @ rows)
    assert shift <= 1e-3 * exact.vanilla_norm


def test_options_may_be_integers():
    problem = problem_of(gradients("mixed", 12, 0), 6)
    whole = aggregate("capo", problem, radius=1, slack_price=3)
    np.testing.assert_array_equal(
        whole.coefficients, aggregate("capo", problem, radius=1.0, slack_price=3.0).coefficients
    )


@pytest.mark.parametrize(
    "options",
    [
        {"radius": -0.1},
        {"radius": np.nan},
        {"slack_price": 0.0},
        {"slack_price": np.nan},
        {"region": "cube"},
        {"on_infeasible": "panic"},
    ],
)
def test_options_out_of_range_are_errors(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        aggregate("capo", problem_of(gradients("shared", 4, 0), 2), **options)
