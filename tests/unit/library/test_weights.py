"""From a Gram matrix to weights, by the public functions."""

import cvxpy
import numpy as np
import pytest
import torch

import capo_ds
from capo_ds import Combination, GramProblem, aggregate, capo

ADVANTAGES = np.array([1.2, 0.4, 0.1, -0.3, -0.9, 0.0])


@pytest.fixture
def gradients():
    return np.random.default_rng(3).normal(size=(6, 9)) + 0.3


def best(gradients, advantages, radius, average):
    """g~ of the hard program, by CVXPY on the primal."""
    g = cvxpy.Variable(gradients.shape[1])
    centre = average @ gradients
    positive, negative = gradients[advantages > 0], gradients[advantages < 0]
    constraints = [cvxpy.norm(g - centre) <= radius * np.linalg.norm(centre), negative @ g >= 0]
    problem = cvxpy.Problem(cvxpy.Maximize(cvxpy.min(positive @ g)), constraints)
    problem.solve(solver="CLARABEL", tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)
    return g.value


@pytest.mark.parametrize("radius", [0.8, 1.0, 1.5])
@pytest.mark.parametrize("total", [6, 10])
def test_it_is_the_solution_of_the_program(gradients, radius, total):
    average = np.full(6, 1 / total)
    answer = capo(gradients @ gradients.T, ADVANTAGES, radius=radius, average=average)
    expected = best(gradients, ADVANTAGES, radius, average)
    assert answer.status == "optimal" and abs(answer.gap) < 1e-7
    np.testing.assert_allclose(answer.weights @ gradients, expected, atol=1e-5)
    assert answer.xi[:3].sum() == pytest.approx(1) and answer.xi[5] == 0
    assert answer.conflict["max_violation"] < 1e-8


def test_gradients_of_losses_give_the_same_weights(gradients):
    flipped = -gradients
    first, second = (capo(rows @ rows.T, ADVANTAGES) for rows in (gradients, flipped))
    np.testing.assert_array_equal(first.weights, second.weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_tensors_are_taken_too(gradients, dtype):
    rows = torch.tensor(gradients, requires_grad=True)
    gram = (rows @ rows.T).to(dtype)
    answer = capo(gram, torch.tensor(ADVANTAGES).to(dtype))
    exact = capo(gram.detach().double().numpy(), ADVANTAGES.tolist())
    np.testing.assert_array_equal(answer.weights, exact.weights)


@pytest.mark.parametrize("method", ["mean", "mgda", "pcgrad", "cagrad", "conflict_free"])
def test_other_methods_come_the_same_way(gradients, method):
    gram = gradients @ gradients.T
    problem = GramProblem(gram, ADVANTAGES > 0, ADVANTAGES < 0)
    answer = aggregate(method, gram, ADVANTAGES)
    assert isinstance(answer, Combination)
    expected = capo_ds.aggregation.aggregate(method, problem)
    np.testing.assert_array_equal(answer.weights, expected.coefficients)
    assert answer.conflict["norm_ratio"] > 0


def test_torchjds_weightings_come_the_same_way(gradients):
    torchjd = pytest.importorskip("torchjd.aggregation")
    gram = gradients @ gradients.T
    answer = aggregate("torchjd:UPGrad", gram)
    expected = torchjd.UPGradWeighting()(torch.from_numpy(gram)).numpy()
    np.testing.assert_allclose(answer.weights, expected)


def test_a_function_of_ones_own_with_options(gradients):
    def loudest(problem, share):
        return share * (problem.norms == problem.norms.max())

    answer = aggregate(loudest, gradients @ gradients.T, ADVANTAGES, share=0.25)
    assert answer.weights.sum() == 0.25 and answer.gap is None
    with pytest.raises(RuntimeError, match=r"aggregator loudest: TypeError: .*other"):
        aggregate(loudest, gradients @ gradients.T, ADVANTAGES, other=1)


def test_gradients_of_one_length(gradients):
    norms = np.linalg.norm(gradients, axis=1)
    answer = aggregate("mean", gradients @ gradients.T, program={"norms": "unit"})
    np.testing.assert_allclose(answer.weights, np.median(norms) / norms / 6)


def test_prompts_as_tasks(gradients):
    gram, groups = gradients @ gradients.T, [0, 0, 1, 1, 0, 1]
    answer = capo(gram, ADVANTAGES, groups=groups, program={"tasks": "group"})
    assert answer.weights[0] == pytest.approx(answer.weights[1])  # of one prompt, and positive
    with pytest.raises(ValueError, match="give the groups"):
        capo(gram, ADVANTAGES, program={"tasks": "group"})


def test_a_sample_that_is_nan_is_dropped(gradients):
    gradients[1, 2] = np.nan
    answer = capo(gradients @ gradients.T, ADVANTAGES)
    assert answer.dropped.tolist() == [False, True, False, False, False, False]
    assert answer.weights[1] == 0 and np.isfinite(answer.weights).all()
    assert answer.report["dropped"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"advantages": [1.0, -1.0]}, r"advantages must be 6 numbers, got shape \(2,\)"),
        ({"advantages": [np.nan] * 6}, "advantages must be numbers"),
        ({"average": [0.5, 0.5]}, "6 finite weights"),
        ({"groups": [0, 1]}, "groups must be 6 numbers"),
        ({"program": {"norm": "unit"}}, "program: 'norm' is none of norms"),
        ({"program": {"norms": "units"}}, "norms must be one of none, clip, unit, got 'units'"),
        ({"program": {"norm_quantile": 1.5}}, "norm_quantile must be between 0 and 1, got 1.5"),
        ({"radius": "auto"}, "radius must be finite and >= 0, got 'auto'"),
        ({"radius": -1}, "radius must be finite and >= 0, got -1"),
        ({"slack_price": 0.0}, "slack_price must be > 0"),
    ],
)
def test_what_does_not_fit_is_told(gradients, arguments, words):
    with pytest.raises(ValueError, match=words):
        capo(gradients @ gradients.T, **({"advantages": ADVANTAGES} | arguments))


@pytest.mark.parametrize("gram", [np.float64(1.0), np.ones(3), np.ones((2, 3)), np.ones((0, 0))])
def test_what_is_no_gram_matrix_is_told(gram):
    with pytest.raises(ValueError, match="gram must be"):
        aggregate("mean", gram)


def test_an_unknown_method_is_told_with_those_there_are():
    with pytest.raises(ValueError, match="unknown aggregator 'capoo'; choose from mean, capo"):
        aggregate("capoo", np.eye(2))
    with pytest.raises(ValueError, match="'config'; it is called conflict_free now"):
        aggregate("config", np.eye(2))


def test_an_option_that_a_method_does_not_have():
    with pytest.raises(TypeError, match="radius"):
        aggregate("mean", np.eye(2), radius=0.5)


def no_gram_matrices(gram):
    negative, long = gram.copy(), gram.copy()
    negative[0, 0] = -1.0
    long[0, 1] = long[1, 0] = 2 * np.sqrt(gram[0, 0] * gram[1, 1])
    no_length = gram.copy()
    no_length[0, 0] = 0.0
    apart = np.full((6, 6), -0.9) + 1.9 * np.eye(6)  # no six vectors are all that far apart
    return {
        r"gram\[0, 0\] is -1, and a squared length": negative,
        r"a squared length is not negative": -gram,
        r"gram\[0, 1\] is .*more than the product": long,
        r"gram\[0, .\] is .*the lengths, 0": no_length,
        "gram is indefinite": apart,
        "must be real": gram + 0j,
    }


@pytest.mark.parametrize("method", ["capo", "mean"])
def test_what_is_no_gram_matrix_is_refused(gradients, method):
    for words, gram in no_gram_matrices(gradients @ gradients.T).items():
        with pytest.raises(ValueError, match=words):
            aggregate(method, gram, ADVANTAGES)
    large = np.kron(np.eye(100), np.full((6, 6), -0.9) + 1.9 * np.eye(6))
    with pytest.raises(ValueError, match="indefinite"):
        aggregate("mean", np.where(large == 0, -0.5, large))


@pytest.mark.parametrize(("count", "size"), [(40, 3), (600, 5)])
def test_rounding_makes_no_other_matrix(count, size):
    random = np.random.default_rng(0)
    rows = random.normal(size=(count, size)) * random.lognormal(sigma=3, size=(count, 1))
    single = rows.astype(np.float32) @ rows.astype(np.float32).T
    coarse = torch.from_numpy(rows @ rows.T).to(torch.bfloat16)
    for gram in (single, coarse):
        assert np.isfinite(aggregate("mean", gram).weights).all()
    answer = capo(single, random.choice([-1, 1], size=count))
    assert answer.status.startswith(("optimal", "infeasible")) and abs(answer.gap) < 1e-7


def test_a_length_that_rounding_took_away_is_no_length(gradients):
    gram = gradients @ gradients.T
    gram[0], gram[:, 0] = 1e-4, 1e-4  # of other squared lengths of 10
    gram[0, 0] = -1e-8
    answer = capo(gram, ADVANTAGES)
    assert abs(answer.gap) < 1e-7
    gram[0] = gram[:, 0] = 0.0
    np.testing.assert_allclose(answer.weights[1:], capo(gram, ADVANTAGES).weights[1:], atol=1e-6)
