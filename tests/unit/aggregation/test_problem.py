"""Validation and bookkeeping of `GramProblem`."""

from __future__ import annotations

import numpy as np
import pytest

from capo_ds.aggregation import GramProblem

ROWS = np.array([[1.0, 2.0], [0.5, -1.0], [3.0, 0.0]])
GRAM = ROWS @ ROWS.T
POSITIVE, NEGATIVE = np.array([True, False, False]), np.array([False, True, False])


def test_g0_from_the_gram_matrix():
    problem = GramProblem(GRAM, POSITIVE, NEGATIVE)
    vanilla = ROWS.mean(axis=0)
    np.testing.assert_allclose(problem.average, 1 / 3)
    np.testing.assert_allclose(problem.q0, ROWS @ vanilla)
    assert problem.vanilla_norm == pytest.approx(np.linalg.norm(vanilla))
    weighted = GramProblem(GRAM, POSITIVE, NEGATIVE, np.array([1.0, 0.0, 2.0]))
    np.testing.assert_allclose(weighted.q0, ROWS @ (ROWS[0] + 2 * ROWS[2]))


def test_float32_rounding_is_symmetrised():
    gram = GRAM.astype(np.float32)
    gram[0, 1] *= 1 + 3e-6
    problem = GramProblem(gram, POSITIVE, NEGATIVE)
    assert problem.gram.dtype == np.float64
    np.testing.assert_array_equal(problem.gram, problem.gram.T)


def test_the_callers_array_is_left_alone():
    gram = GRAM.copy()
    gram[1, :] = gram[:, 1] = np.nan
    GramProblem(gram, POSITIVE, NEGATIVE)
    assert np.isnan(gram[1, 1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((GRAM[:2], POSITIVE, NEGATIVE), "gram must be"),
        ((GRAM[:0, :0], POSITIVE[:0], NEGATIVE[:0]), "gram must be"),
        ((GRAM, POSITIVE[:2], NEGATIVE), "positive must be 3 booleans"),
        ((GRAM, POSITIVE, NEGATIVE.astype(float)), "negative must be 3 booleans"),
        ((GRAM, POSITIVE, POSITIVE), "both positive and negative"),
        ((GRAM, POSITIVE, NEGATIVE, np.ones(2)), "average must be 3 finite"),
        ((GRAM, POSITIVE, NEGATIVE, np.array([1.0, np.nan, 0.0])), "average must be 3 finite"),
        ((GRAM + np.triu(np.ones((3, 3)), 1), POSITIVE, NEGATIVE), "not symmetric"),
    ],
)
def test_what_does_not_fit_is_an_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        GramProblem(*arguments)


def test_a_gradient_with_nan_spoils_its_row_and_is_dropped():
    rows = ROWS.copy()
    rows[0, 1] = np.nan
    problem = GramProblem(rows @ rows.T, POSITIVE, NEGATIVE)
    np.testing.assert_array_equal(problem.dropped, [True, False, False])
    np.testing.assert_array_equal(problem.average, [0.0, 1 / 3, 1 / 3])
    assert not problem.positive.any() and problem.negative[1]
    assert np.all(problem.gram[0] == 0.0) and np.all(np.isfinite(problem.gram))


def test_a_bad_entry_off_a_finite_diagonal_drops_one_sample_not_two():
    gram = GRAM.copy()
    gram[0, 1] = gram[1, 0] = gram[0, 2] = gram[2, 0] = np.inf
    np.testing.assert_array_equal(
        GramProblem(gram, POSITIVE, NEGATIVE).dropped, [True, False, False]
    )


def test_all_samples_dropped():
    problem = GramProblem(np.full((3, 3), np.nan), POSITIVE, NEGATIVE)
    assert problem.dropped.all() and problem.vanilla_norm == 0.0
