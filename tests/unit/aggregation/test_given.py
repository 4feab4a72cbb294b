"""What an aggregator is given: each choice against CVXPY on the primal, in R^d."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from gradient_families import gradients, primal_by_cvxpy, problem_of
from hypothesis import given as hypothesis_given
from hypothesis import settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from capo_ds.aggregation import GramProblem, aggregate
from capo_ds.aggregation.given import (
    MOST_RAISED,
    Choices,
    geometric_median,
    given,
    norm_scale,
)
from capo_ds.aggregation.update import Samples, Solver

GROUPS = np.arange(12) % 3  # of the samples below; each prompt has positives and negatives
POSITIVES, NEGATIVES = 5, 5  # and 2 neutral ones


def drawn(seed: int = 1, family: str = "heavy") -> tuple[np.ndarray, GramProblem]:
    rows = gradients(family, 12, seed)
    return rows, problem_of(rows, POSITIVES, NEGATIVES)


def applied(problem: GramProblem, choices: Choices, name: str = "capo", **options) -> np.ndarray:
    """(N,) coefficients."""
    program = given(problem, GROUPS, choices)
    return program.answer(aggregate(name, program.problem, **options)).coefficients


def scaled_by_hand(rows: np.ndarray, problem: GramProblem, norms: str) -> np.ndarray:
    """(N, d) rows with the norms of those with an advantage made so."""
    voices = problem.positive | problem.negative
    lengths = np.linalg.norm(rows, axis=1)
    limit = np.median(lengths[voices])
    target = np.minimum(lengths, limit) if norms == "clip" else np.full(len(rows), limit)
    return np.where(voices[:, None], rows * (target / lengths)[:, None], rows)


@pytest.mark.parametrize("norms", ["clip", "unit"])
@pytest.mark.parametrize("region", ["difference", "norm"])
@pytest.mark.parametrize("seed", range(4))
def test_scaled_norms_everywhere_are_the_program_of_scaled_gradients(norms, region, seed):
    rows, problem = drawn(seed)
    scaled = scaled_by_hand(rows, problem, norms)
    replaced = problem_of(scaled, POSITIVES, NEGATIVES)
    value, g = primal_by_cvxpy(scaled, replaced, 0.5, 10.0, region)
    answer = applied(problem, Choices(norms=norms), radius=0.5, region=region)
    size = np.linalg.norm(g)
    np.testing.assert_allclose(answer @ rows, g, atol=2e-3 * size)
    at_answer = elastic_value(answer @ rows, scaled, replaced)
    assert at_answer == pytest.approx(value, abs=1e-6 * size * np.linalg.norm(scaled, axis=1).max())


def elastic_value(g: np.ndarray, rows: np.ndarray, problem: GramProblem, price: float = 10.0):
    products = rows @ g
    return (
        products[problem.positive].min() - price * np.maximum(-products[problem.negative], 0).sum()
    )


@pytest.mark.parametrize("norms", ["clip", "unit"])
@pytest.mark.parametrize("seed", range(4))
def test_scaled_norms_in_the_program_alone_keep_the_average(norms, seed):
    rows, problem = drawn(seed)
    scaled = scaled_by_hand(rows, problem, norms)
    scale = np.linalg.norm(scaled, axis=1) / np.linalg.norm(rows, axis=1)
    centred = replace(problem_of(scaled, POSITIVES, NEGATIVES), average=problem.average / scale)
    np.testing.assert_allclose(centred.average @ scaled, rows.mean(0), atol=1e-12)
    _, g = primal_by_cvxpy(scaled, centred, 0.5, 10.0)
    choices = Choices(norms=norms, norms_in="program")
    np.testing.assert_allclose(
        applied(problem, choices, radius=0.5) @ rows, g, atol=2e-3 * np.linalg.norm(g)
    )
    np.testing.assert_allclose(applied(problem, choices, "mean") @ rows, rows.mean(0), atol=1e-12)


@pytest.mark.parametrize("norms", ["none", "unit"])
@pytest.mark.parametrize("seed", range(4))
def test_group_tasks_are_the_program_of_the_prompts_sums(norms, seed):
    rows, problem = drawn(seed)
    scaled = rows if norms == "none" else scaled_by_hand(rows, problem, norms)
    kind = problem.positive.astype(int) - problem.negative
    keys = sorted({(prompt, sign) for prompt, sign in zip(GROUPS, kind, strict=True)})
    sums = np.array([scaled[(prompt == GROUPS) & (kind == sign)].sum(0) for prompt, sign in keys])
    signs = np.array([sign for _, sign in keys])
    program = GramProblem(sums @ sums.T, signs > 0, signs < 0, np.full(len(keys), 1 / 12))
    _, g = primal_by_cvxpy(sums, program, 0.5, 10.0)
    answer = applied(problem, Choices(norms=norms, tasks="group"), radius=0.5)
    np.testing.assert_allclose(answer @ rows, g, atol=2e-3 * np.linalg.norm(g))


def test_group_tasks_leave_g0_as_it_is():
    rows, problem = drawn()
    coefficients = applied(problem, Choices(tasks="group"), "mean")
    np.testing.assert_allclose(coefficients @ rows, rows.mean(0), atol=1e-14)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_positives_keep_their_share_and_the_program_is_that_of_its_price(share):
    rows, problem = drawn(3, "mixed")
    answer = aggregate("capo", problem, radius=0.5, positive_share=share)
    assert answer.xi[problem.positive].sum() / answer.xi.sum() >= share - 1e-9
    price = (1 - share) / (share * NEGATIVES)
    assert answer.report["slack_price"] == pytest.approx(price)
    _, g = primal_by_cvxpy(rows, problem, 0.5, price)
    np.testing.assert_allclose(answer.coefficients @ rows, g, atol=2e-3 * np.linalg.norm(g))


@pytest.mark.parametrize("seed", range(5))
def test_the_geometric_median_is_the_point_of_least_total_distance(seed):
    points = np.random.default_rng(seed).normal(size=(7, 3))
    weights = geometric_median(points @ points.T)
    found = weights @ points
    assert weights.min() >= 0 and weights.sum() == pytest.approx(1)

    def total(x: np.ndarray) -> float:
        return np.linalg.norm(points - x, axis=1).sum()

    best = minimize(total, points.mean(0), method="Nelder-Mead", options={"fatol": 1e-12})
    assert total(found) <= best.fun * (1 + 1e-7)


def test_one_odd_prompt_moves_the_robust_average_little():
    rows = np.random.default_rng(0).normal(size=(12, 6)) * 0.1 + 1.0
    rows[GROUPS == 2] *= -1000.0
    problem = problem_of(rows, 6)
    robust = applied(problem, Choices(average="geometric_median"), "mean") @ rows
    cosine = robust @ np.ones(6) / np.linalg.norm(robust) / 6**0.5
    assert cosine > 0.9 > 0.0 > (rows.mean(0) @ np.ones(6))


def test_prompts_without_a_gradient_have_no_say_in_the_robust_average():
    gram = np.diag([1.0, 1.0, 0.0, 0.0, 0.0])
    weights = geometric_median(gram)
    np.testing.assert_allclose(weights[2:], 0.0)
    assert weights.sum() == pytest.approx(1)
    np.testing.assert_allclose(geometric_median(np.zeros((4, 4))), 0.25)


def test_no_voice_is_made_of_noise_or_nothing():
    """Neutral samples, zero gradients and dropped ones keep their length; rounding is not raised
    to a unit."""
    rows = np.eye(6) * np.array([1.0, 2.0, 0.0, 1e-9, 3.0, 1e-7])[:, None]
    gram = rows @ rows.T
    gram[4, 4] = np.nan
    sign = np.array([1, -1, 1, -1, 1, 0])
    problem = GramProblem(gram, sign > 0, sign < 0)
    scale = norm_scale(problem, "unit", 0.5)
    assert scale[5] == scale[4] == scale[2] == 1.0
    assert scale[3] == MOST_RAISED
    np.testing.assert_allclose(scale[:2] * [1.0, 2.0], 1.0)  # the median of 1e-9, 1 and 2
    for choices in (Choices(norms="unit"), Choices(tasks="group"), Choices(norms="clip")):
        program = given(problem, np.array([0, 0, 1, 1, 2, 2]), choices)
        answer = program.answer(aggregate("capo", program.problem, radius=0.5))
        assert np.isfinite(answer.coefficients).all()
        assert answer.coefficients[4] == 0.0


@hypothesis_given(
    st.sampled_from(["none", "clip", "unit"]),
    st.sampled_from(["sample", "group"]),
    st.sampled_from(["mean", "geometric_median"]),
    st.integers(0, 1000),
    st.floats(1e-6, 1e6),
)
@settings(max_examples=60, deadline=None)
def test_order_and_scale_of_the_samples_do_not_matter(norms, tasks, average, seed, scale):
    rows, problem = drawn(seed, "mixed")
    choices = Choices(norms=norms, tasks=tasks, average=average)
    expected = applied(problem, choices, radius=0.5) @ rows
    order = np.random.default_rng(seed).permutation(12)
    moved = GramProblem(
        scale**2 * problem.gram[np.ix_(order, order)],
        problem.positive[order],
        problem.negative[order],
    )
    program = given(moved, GROUPS[order], choices)
    answer = program.answer(aggregate("capo", program.problem, radius=0.5))
    found = answer.coefficients @ rows[order]
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.linalg.norm(expected))


def test_each_block_is_a_program_of_its_own():
    rows, problem = drawn(2, "mixed")
    parts = np.split(rows, [7, 15], axis=1)
    samples = Samples(
        np.stack([part @ part.T for part in parts]),
        problem.positive.astype(float) - problem.negative,
        GROUPS,
        total=12,
    )
    solved = Solver("capo", {"radius": 0.5}).solve(samples, np.random.default_rng(0))
    dense = []
    for part, coefficients in zip(parts, solved.coefficients, strict=True):
        own = problem_of(part, POSITIVES, NEGATIVES)
        _, g = primal_by_cvxpy(part, own, 0.5, 10.0)
        np.testing.assert_allclose(coefficients @ part, g, atol=2e-3 * np.linalg.norm(g))
        dense.append(coefficients @ part)
    whole = np.concatenate(dense)
    vanilla = rows.mean(0)
    cosine = whole @ vanilla / np.linalg.norm(whole) / np.linalg.norm(vanilla)
    assert solved.metrics["conflict/cosine_to_vanilla"] == pytest.approx(cosine)
    np.testing.assert_allclose(solved.norms, np.linalg.norm(rows, axis=1))
    np.testing.assert_allclose(
        solved.cosines_after, rows @ whole / solved.norms / np.linalg.norm(whole)
    )


@pytest.mark.parametrize("block", [0, 1])
def test_a_sample_that_is_nan_in_one_block_is_dropped_from_all(block):
    rows, problem = drawn(2, "mixed")
    grams = np.stack([part @ part.T for part in np.split(rows, [9], axis=1)])
    grams[block, 3] = grams[block, :, 3] = np.nan
    sign = problem.positive.astype(float) - problem.negative
    solved = Solver("capo").solve(Samples(grams, sign, GROUPS, 12), np.random.default_rng(0))
    assert solved.dropped.nonzero()[0].tolist() == [3] and solved.mean_weights[3] == 0.0
    assert solved.heard(np.arange(12), 12)[3]["norm"] is None
    assert not solved.coefficients[:, 3].any()
    assert np.isfinite(solved.coefficients).all() and solved.metrics["capo/dropped"] == 1
