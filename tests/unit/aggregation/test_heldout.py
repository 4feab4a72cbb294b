"""Held-out conflict: against dense gradients, and against a population that is known."""

from __future__ import annotations

import numpy as np
import pytest
from gradient_families import gradients, problem_of

from capo_ds.aggregation import GramProblem, aggregate
from capo_ds.aggregation.heldout import halves, heldout
from capo_ds.aggregation.radius import GRID, MEMORY, RadiusChooser
from capo_ds.aggregation.update import Samples, Solver

PROMPTS, GROUP = 24, 4


def signs(count: int) -> np.ndarray:
    return np.where(np.arange(count) % 2, -1.0, 1.0)


def sampled(rng: np.random.Generator, means: np.ndarray, noise: float) -> np.ndarray:
    """(N, d): each prompt's responses are its mean and noise of their own."""
    repeated = np.repeat(means, GROUP, axis=0)
    return repeated + noise * rng.normal(size=repeated.shape)


def cosine(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return first @ second / np.linalg.norm(first, axis=-1) / np.linalg.norm(second)


def test_measures_are_those_of_dense_gradients():
    rows = gradients("shared", 16, seed=0)
    sign, groups = signs(16), np.repeat(np.arange(4), 4)
    problem = GramProblem(rows @ rows.T, sign > 0, sign < 0)
    first = np.isin(groups, [0, 2])

    def fit(blocks, _):
        return np.stack([aggregate("capo", block, radius=0.5).coefficients for block in blocks])

    found = heldout([problem], groups, first, fit)
    expected = {"positive": [], "negative": [], "cosine": [], "alignment": []}
    for fitted in (first, ~first):
        mine, theirs = rows[fitted], rows[~fitted]
        program = problem_of(mine, 0, 0)
        program = GramProblem(program.gram, sign[fitted] > 0, sign[fitted] < 0)
        g = aggregate("capo", program, radius=0.5).coefficients @ mine
        angles = cosine(theirs, g)
        expected["positive"].append(np.mean(angles[sign[~fitted] > 0] < -1e-6))
        expected["negative"].append(np.mean(angles[sign[~fitted] < 0] < -1e-6))
        expected["cosine"].append(cosine(theirs.mean(0), g))
        expected["alignment"].append(angles.mean())
    for key, name in (
        ("positive", "heldout_positive_after"),
        ("negative", "heldout_negative_after"),
        ("cosine", "heldout_cosine"),
        ("alignment", "heldout_alignment"),
    ):
        assert found[f"conflict/{name}"] == pytest.approx(np.mean(expected[key])), key


def test_it_tells_the_populations_conflict_where_the_fitted_share_flatters():
    """Prompts are drawn from a population whose gradients are known: the held-out share is that of
    new samples of the population, the share on the samples themselves is far below it."""
    rng = np.random.default_rng(1)
    dimension = 60
    common = rng.normal(size=dimension) / dimension**0.5

    def population(prompts: int) -> np.ndarray:
        means = 0.4 * common + rng.normal(size=(prompts, dimension)) / dimension**0.5
        return sampled(rng, means, noise=1.5 / dimension**0.5)

    fitted, held, true = [], [], []
    for draw in range(12):
        rows, sign = population(PROMPTS), signs(PROMPTS * GROUP)
        groups = np.repeat(np.arange(PROMPTS), GROUP)
        samples = Samples((rows @ rows.T)[None], sign, groups, len(rows))
        solved = Solver("capo", {"radius": 1.0}).solve(samples, np.random.default_rng(draw))
        held.append(solved.metrics["conflict/heldout_all_after"])
        fitted.append(solved.metrics["conflict/all_after"])
        # A half's aggregate on many new prompts of the same population.
        half = rows[np.isin(groups, np.arange(PROMPTS // 2))]
        own = GramProblem(half @ half.T, signs(len(half)) > 0, signs(len(half)) < 0)
        g = aggregate("capo", own, radius=1.0).coefficients @ half
        true.append(np.mean(cosine(population(400), g) < -1e-6))
    assert np.mean(held) == pytest.approx(np.mean(true), abs=0.03)
    assert np.mean(fitted) < np.mean(true) - 0.15


def test_halves_keep_prompts_whole_and_do_not_depend_on_the_order_of_samples():
    groups = np.repeat(np.arange(7), 3)
    first = halves(groups, np.random.default_rng(4))
    for prompt in range(7):
        assert len(set(first[groups == prompt].tolist())) == 1
    assert len(set(groups[first].tolist())) == 3
    order = np.random.default_rng(0).permutation(len(groups))
    np.testing.assert_array_equal(halves(groups[order], np.random.default_rng(4)), first[order])


@pytest.mark.parametrize(
    ("sign", "groups", "missing"),
    [
        (np.ones(4), np.zeros(4, int), {"cosine", "all_after"}),  # one prompt
        (np.ones(4), np.array([0, 0, 1, 1]), {"negative_after", "negative_before"}),
        (np.zeros(4), np.array([0, 0, 1, 1]), {"all_after", "cosine", "alignment"}),
    ],
)
def test_keys_without_samples_are_left_out(sign, groups, missing):
    rows = gradients("shared", 4, seed=0)
    samples = Samples((rows @ rows.T)[None], sign, groups, 4)
    metrics = Solver("mean").solve(samples, np.random.default_rng(0)).metrics
    assert not {f"conflict/heldout_{name}" for name in missing} & metrics.keys()
    assert np.isfinite(list(metrics.values())).all()


@pytest.mark.parametrize("name", ["mean", "capo", "mgda", "pcgrad", "cagrad", "conflict_free"])
def test_every_aggregator_is_measured(name):
    rows = gradients("mixed", 16, seed=3)
    samples = Samples((rows @ rows.T)[None], signs(16), np.repeat(np.arange(4), 4), 16)
    metrics = Solver(name).solve(samples, np.random.default_rng(0)).metrics
    for kind in ("positive", "negative", "all"):
        assert {f"conflict/heldout_{kind}_before", f"conflict/heldout_{kind}_after"} <= set(metrics)
    if name == "mean":
        assert metrics["conflict/heldout_cosine"] == metrics["conflict/heldout_cosine_before"]
    off = Solver(name, measure_heldout=False).solve(samples, np.random.default_rng(0)).metrics
    assert not any("heldout" in key for key in off)


def test_the_radius_is_the_one_with_the_best_smoothed_score():
    chooser = RadiusChooser()
    assert chooser.choose(lambda _: None) == (0.5, {"capo/radius": 0.5})
    radius, told = chooser.choose(lambda radius: -abs(radius - 0.25))
    assert radius == told["capo/radius"] == 0.25
    assert told["capo/alignment_at_0.1"] == pytest.approx(-0.15)
    # One step to the contrary does not turn it; many do.
    assert chooser.choose(lambda radius: 0.01 * radius)[0] == 0.25
    for _ in range(60):
        radius, _ = chooser.choose(lambda radius: 0.01 * radius)
    assert radius == GRID[-1]
    assert 0 < MEMORY < 1


def test_the_radius_goes_on_from_its_state_bit_for_bit():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(20, len(GRID)))
    undisturbed, resumed = RadiusChooser(), RadiusChooser()
    for row in scores[:10]:
        undisturbed.choose(dict(zip(GRID, row.tolist(), strict=True)).__getitem__)
    resumed.restore(undisturbed.state())
    for row in scores[10:]:
        score = dict(zip(GRID, row.tolist(), strict=True)).__getitem__
        assert undisturbed.choose(score) == resumed.choose(score)


def test_auto_gives_the_answer_of_the_radius_it_reports():
    rows = gradients("shared", 32, seed=2)
    samples = Samples((rows @ rows.T)[None], signs(32), np.repeat(np.arange(8), 4), 32)
    solved = Solver("capo", {"radius": "auto"}).solve(samples, np.random.default_rng(0))
    fixed = Solver("capo", {"radius": solved.metrics["capo/radius"]}).solve(
        samples, np.random.default_rng(0)
    )
    np.testing.assert_array_equal(solved.coefficients, fixed.coefficients)
