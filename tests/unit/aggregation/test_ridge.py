"""Programs whose exchanges cycle without a ridge: near duplicates, rank below N, dg = 0."""

from __future__ import annotations

import numpy as np
import pytest
from gradient_families import primal_by_cvxpy, problem_of, unit_of
from scipy.optimize import nnls

from capo_ds.aggregation import aggregate, exchange, interior_point, ridge, solver
from capo_ds.aggregation.exchange import Face, Sides
from capo_ds.aggregation.free_system import FreeSystems
from capo_ds.aggregation.program import ConeProgram

COUNT = 72  # more than the interior point takes at once
PLACES = (("difference", 0.5), ("difference", 1.0), ("difference", 2.0), ("norm", 0.5))


def rows_of(kind: str, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind.startswith("copies"):  # of each gradient four, but for noise
        noise = float(kind.split()[1])
        originals = rng.normal(size=(COUNT // 4, 2 * COUNT)) / 12
        rows = originals[rng.integers(0, len(originals), size=COUNT)]
        return rows + noise * rng.normal(size=rows.shape) / 12
    rank = int(float(kind.split()[1]) * COUNT)
    rows = rng.normal(size=(COUNT, rank)) / np.sqrt(rank)
    if kind.startswith("heavy"):
        rows *= np.exp(1.5 * rng.normal(size=(COUNT, 1)))
    return rows


KINDS = ("rank .1", "rank .4", "rank .5", "rank .7", "heavy .5", "copies 0", "copies 1e-6")
KINDS += ("copies 1e-4",)


@pytest.fixture
def no_interior_point(monkeypatch):
    def refuse(program):
        raise AssertionError("the interior point was asked")

    monkeypatch.setattr(interior_point, "iterates", refuse)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("region", "radius"), PLACES)
def test_the_answer_is_that_of_cvxpy_on_the_primal(kind, region, radius, no_interior_point):
    rows = rows_of(kind)
    problem = problem_of(rows, positives=COUNT // 2)
    answer = aggregate("capo", problem, radius=radius, region=region)
    value, g = primal_by_cvxpy(rows, problem, radius, 10.0, region)
    unit = unit_of(rows, problem, radius)
    assert abs(answer.report["gap"]) <= solver.CERTIFIED and answer.report["fallback"] == 0.0
    assert answer.report["primal"] == pytest.approx(value, abs=1e-7 * unit)
    if answer.status != "degenerate":  # else it is the nearest of many
        np.testing.assert_allclose(answer.coefficients @ rows, g, atol=2e-3 * problem.vanilla_norm)


@pytest.mark.parametrize("kind", ["rank .1", "rank .2", "rank .4"])
@pytest.mark.parametrize("positives", [0, COUNT])
def test_where_dg_vanishes_the_point_is_the_nearest(kind, positives, no_interior_point):
    """Without negatives (or positives) a projection on {<g, g_i> >= 0}, by least squares."""
    rows = rows_of(kind, seed=3)
    rows[:, 0] += 0.6  # a cone with an interior, or nearly none
    centre = np.linspace(-1.0, 1.0, rows.shape[1])
    if positives:
        rows[0] = -rows[1:5].mean(axis=0)
    program = ConeProgram(rows @ rows.T, rows @ centre, 2 * np.linalg.norm(centre), positives, 1.0)
    solution = solver.solve(program)
    weights, _ = nnls(rows.T, -centre, maxiter=10_000)
    assert solution.certified and not solution.on_boundary
    np.testing.assert_allclose(solution.step @ rows, weights @ rows, atol=1e-6)


@pytest.mark.parametrize("seed", [1, 4, 6, 11])
def test_zero_alone_is_optimal_on_the_boundary(seed, no_interior_point):
    """At C = 1, g = 0 is on the boundary; in the norm ball it is the centre."""
    rows = np.random.default_rng(seed).normal(size=(256, 128))
    problem = problem_of(rows, positives=128)
    for region in ("difference", "norm"):
        answer = aggregate("capo", problem, radius=1.0, region=region)
        assert answer.status == "degenerate" and answer.report["gap"] <= solver.CERTIFIED
        g = answer.coefficients @ rows
        assert np.linalg.norm(g) <= 1e-5 * np.linalg.norm(rows.mean(axis=0))


@pytest.mark.parametrize("kind", ["rank .2", "rank .4"])
def test_the_norm_ball_s_nearest_point_is_that_of_least_squares(kind, no_interior_point):
    rows = rows_of(kind, seed=3)
    rows[:, 0] += 0.6
    rows[0] = -rows[1:5].mean(axis=0)  # no g aligns with all
    average = rows.mean(axis=0)
    answer = aggregate("capo", problem_of(rows, COUNT // 2), radius=0.5, region="norm")
    weights, _ = nnls(rows.T, -average, maxiter=10_000)
    nearest = average + weights @ rows
    nearest *= min(1.0, 0.5 * np.linalg.norm(average) / np.linalg.norm(nearest))
    assert answer.status == "degenerate"
    np.testing.assert_allclose(answer.coefficients @ rows, nearest, atol=1e-6)


def test_the_sides_of_a_norm_ball_s_zero_are_used_again(monkeypatch, no_interior_point):
    followed = []
    follow = ridge.follow
    monkeypatch.setattr(ridge, "follow", lambda *given: followed.append(1) or follow(*given))
    rows = np.random.default_rng(4).normal(size=(256, 128))
    answer = aggregate("capo", problem_of(rows, positives=128), radius=0.5, region="norm")
    assert answer.status == "degenerate" and len(followed) == 1


@pytest.mark.parametrize("kind", ["rank .4", "rank .7", "copies 1e-4"])
def test_every_stage_solves_the_program_of_the_ridged_gradients(kind):
    """A ridge is a component of its own for each sample, against the interior point."""
    rows = rows_of(kind, seed=1)
    gram = rows @ rows.T
    program = ConeProgram(gram, gram.mean(axis=1), 0.3, COUNT // 2, 10.0).normalised()[0]
    share = 1e-2
    with_ridge = ConeProgram(
        program.gram + share * np.diag(np.diag(program.gram)),
        program.linear,
        program.radius,
        program.positives,
        program.price,
    )
    expected = min(interior_point.iterates(with_ridge), key=lambda pair: pair.gap)
    sides = Sides.worst_aligned(program)
    *_, (face, moved) = exchange.faces(program, sides, share)
    assert moved == 0
    unit = with_ridge.cancellation_scale(expected.xi)
    assert with_ridge.dual_value(face.xi) == pytest.approx(
        with_ridge.dual_value(expected.xi), abs=1e-7 * unit
    )


def test_the_ridge_finds_what_plain_exchanges_do_not():
    gram = (rows := rows_of("heavy .5", seed=2)) @ rows.T
    radius = 2.0 * np.sqrt(gram.mean())
    program = ConeProgram(gram, gram.mean(axis=1), radius, COUNT // 2, 10.0).normalised()[0]
    assert exchange.exchange(program, Sides.worst_aligned(program)).gap > 1e-3
    sides, factors = ridge.follow(program, Sides.worst_aligned(program))
    face = Face.solve(program, sides, FreeSystems(program, ridge.LEAST))
    assert face.move(program, sides) == 0 and factors < 200


def test_a_zero_gradient_among_many():
    rows = rows_of("rank .7")
    rows[3] = 0.0
    answer = aggregate("capo", problem_of(rows, positives=COUNT // 2), radius=1.0)
    assert answer.status == "degenerate" and abs(answer.report["gap"]) <= solver.CERTIFIED
    products = rows @ (answer.coefficients @ rows)
    assert products[: COUNT // 2].min() >= -1e-7 and answer.report["fallback"] == 0.0


def test_samples_that_come_and_go_need_no_new_factor():
    """Against NumPy on the whole system, border and all."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(600, 300))
    program = ConeProgram(rows @ rows.T, rows.sum(axis=1), 1.0, 250, 10.0)
    systems = FreeSystems(program, 1e-3)
    free = rng.random(600) < 0.6
    rights, totals = rng.normal(size=(2, 600)), np.array([0.0, 1.0])
    factored = None
    for _ in range(4):
        solved = systems.solve(free, rights, totals)
        factored = factored or systems._factored
        matrix = np.zeros((free.sum() + 1, free.sum() + 1))
        matrix[:-1, :-1] = (program.gram + np.diag(1e-3 * np.diag(program.gram)))[free][:, free]
        matrix[-1, :-1] = matrix[:-1, -1] = systems.ones[free]
        expected = np.linalg.solve(matrix, np.vstack([rights[:, free].T, totals]))[:-1]
        np.testing.assert_allclose(solved[:, free], expected.T, atol=1e-9)
        assert not solved[:, ~free].any()
        free = free.copy()
        free[rng.choice(600, 15, replace=False)] ^= True
    assert systems._factored is factored
