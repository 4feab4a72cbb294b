"""The other aggregators against their definitions in R^d and against torchjd."""

from __future__ import annotations

import numpy as np
import pytest
from gradient_families import FAMILIES, draws, gradients, problem_of
from hypothesis import given, settings

from capo_ds.aggregation import AGGREGATORS, aggregate

BUILT_IN = [name for name in AGGREGATORS if ":" not in name]


def answer_of(name, rows, positives=None, **options):
    problem = problem_of(rows, len(rows) // 2 if positives is None else positives)
    return aggregate(name, problem, **options)


def test_unknown_name_lists_the_choices():
    with pytest.raises(ValueError, match="capo, mgda, pcgrad") as error:
        answer_of("capoo", gradients("shared", 4, 0))
    assert "capoo" in str(error.value) and "torchjd" in str(error.value)


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("family", FAMILIES)
def test_finite_and_reported_on_every_family(name, family):
    answer = answer_of(name, gradients(family, 12, 0))
    assert np.all(np.isfinite(answer.coefficients))
    assert all(isinstance(value, float) for value in answer.report.values())


@pytest.mark.parametrize("name", BUILT_IN)
def test_defined_without_tasks_and_without_gradients(name):
    for rows in (gradients("shared", 5, 0), np.zeros((5, 3))):
        answer = aggregate(name, problem_of(rows, positives=0, negatives=0))
        assert np.all(np.isfinite(answer.coefficients))
        answer = aggregate(name, problem_of(np.zeros((5, 3)), positives=3))
        np.testing.assert_array_equal(answer.coefficients @ np.zeros((5, 3)), np.zeros(3))


def test_mean_is_g0():
    rows = gradients("mixed", 7, 0)
    np.testing.assert_array_equal(answer_of("mean", rows).coefficients, np.full(7, 1 / 7))


def test_mgda_of_two_is_the_foot_of_the_perpendicular():
    rows = np.array([[2.0, 1.0], [-1.0, 1.0]])
    np.testing.assert_allclose(answer_of("mgda", rows).coefficients @ rows, [0.0, 1.0], atol=1e-9)


@given(draws())
@settings(deadline=None, max_examples=80)
def test_mgda_is_the_point_of_least_norm(draw):
    """<g_i, g~> >= ||g~||^2 for all i, which characterises it; and weights in the simplex."""
    rows, positives = draw
    answer = answer_of("mgda", rows, positives)
    g = answer.coefficients @ rows
    assert answer.coefficients.min() >= 0.0
    assert answer.coefficients.sum() == pytest.approx(1.0, abs=1e-9)
    largest = np.linalg.norm(rows, axis=1).max()
    assert np.all(rows @ g >= g @ g - 1e-6 * largest**2)


def test_pcgrad_is_the_published_loop():
    rows = gradients("conflict", 9, 4)
    orders = np.random.default_rng(11).permuted(np.tile(np.arange(9), (9, 1)), axis=1)
    total = np.zeros(18)
    for i, order in enumerate(orders):
        projected = rows[i].copy()
        for j in order:
            if j != i and projected @ rows[j] < 0.0:
                projected -= (projected @ rows[j]) / (rows[j] @ rows[j]) * rows[j]
        total += projected / 9
    g = answer_of("pcgrad", rows, seed=11).coefficients @ rows
    np.testing.assert_allclose(g, total, atol=1e-12)
    assert np.linalg.norm(total - rows.mean(axis=0)) > 0.01 * np.linalg.norm(total)


def test_pcgrad_without_conflict_is_g0():
    rows = np.abs(gradients("orthogonal", 6, 0))
    np.testing.assert_allclose(answer_of("pcgrad", rows).coefficients, 1 / 6)


def test_cagrad_is_capo_with_every_task_positive():
    rows = gradients("mixed", 8, 0)
    expected = aggregate("capo", problem_of(rows, positives=8), radius=0.4)
    np.testing.assert_array_equal(
        answer_of("cagrad", rows, radius=0.4).coefficients, expected.coefficients
    )


def test_config_has_equal_cosines_and_the_projected_length():
    rows = gradients("mixed", 6, 3)
    g = answer_of("conflict_free", rows).coefficients @ rows
    cosines = rows @ g / np.linalg.norm(rows, axis=1) / np.linalg.norm(g)
    np.testing.assert_allclose(cosines, cosines[0], rtol=1e-9)
    assert g @ rows.mean(axis=0) == pytest.approx(g @ g)


class TestTorchjd:
    """Agreement with the library; its scale is that of the sum for PCGrad and ConFIG."""

    @pytest.fixture(autouse=True)
    def library(self):
        self.torch = pytest.importorskip("torch")
        self.torchjd = pytest.importorskip("torchjd.aggregation")

    @pytest.mark.parametrize("family", ["orthogonal", "shared", "mixed", "conflict"])
    def test_cagrad(self, family):
        rows = gradients(family, 8, 1)
        ours = answer_of("cagrad", rows, radius=0.5).coefficients @ rows
        theirs = answer_of("torchjd:CAGrad", rows, c=0.5).coefficients @ rows
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.linalg.norm(ours))

    def test_mgda(self):
        rows = gradients("orthogonal", 6, 1)
        ours = answer_of("mgda", rows).coefficients @ rows
        theirs = answer_of("torchjd:MGDA", rows, max_iters=20000, epsilon=1e-12).coefficients
        assert np.linalg.norm(ours) <= np.linalg.norm(theirs @ rows) * (1 + 1e-9)
        np.testing.assert_allclose(ours, theirs @ rows, atol=0.02 * np.linalg.norm(ours))

    def test_config(self):
        rows = gradients("mixed", 6, 3)
        ours = answer_of("conflict_free", rows).coefficients @ rows
        theirs = self.torchjd.ConFIG()(self.torch.from_numpy(rows)).numpy() / 6
        np.testing.assert_allclose(ours, theirs, atol=1e-9 * np.linalg.norm(ours))

    def test_pcgrad_of_two(self):
        rows = np.array([[1.0, 0.2], [-0.5, 1.0]])  # one order only, so no randomness
        ours = answer_of("pcgrad", rows).coefficients
        np.testing.assert_allclose(ours, answer_of("torchjd:PCGrad", rows).coefficients / 2)

    @pytest.mark.parametrize("name", ["torchjd:IMTLG", "torchjd:IMTLGWeighting"])
    def test_any_gramian_weighting_by_name(self, name):
        rows = gradients("mixed", 5, 0)
        expected = self.torchjd.IMTLGWeighting()(self.torch.from_numpy(rows @ rows.T)).numpy()
        np.testing.assert_allclose(answer_of(name, rows).coefficients, expected)

    @pytest.mark.parametrize("name", ["torchjd:Nothing", "torchjd:GradVac", "torchjd:SDMGrad"])
    def test_what_is_not_a_function_of_one_gram_matrix_is_refused(self, name):
        with pytest.raises(ValueError, match="torchjd:UPGrad"):
            answer_of(name, gradients("mixed", 5, 0))
