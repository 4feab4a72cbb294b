"""Faces of a few samples with the others eliminated, against those of the whole program."""

from __future__ import annotations

import numpy as np
import pytest
from gradient_families import primal_by_cvxpy, problem_of, unit_of

from capo_ds.aggregation import aggregate, exchange, interior_point, ridge, solver
from capo_ds.aggregation.exchange import Face, Sides
from capo_ds.aggregation.free_system import FreeSystems
from capo_ds.aggregation.program import ConeProgram
from capo_ds.aggregation.undecided import Undecided, in_doubt

COUNT = 288


def rows_of(heavy: float, seed: int = 0, rank: float = 0.5) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(COUNT, int(rank * COUNT))) / np.sqrt(rank * COUNT)
    return rows * np.exp(heavy * rng.normal(size=(COUNT, 1)))


def settled(share: float, price: float = 10.0, radius: float = 1.0):
    """A program, its sides and its face where no sample is on its wrong side at a ridge."""
    gram = (rows := rows_of(1.0)) @ rows.T
    linear = gram.mean(axis=1)
    program = ConeProgram(gram, linear, radius * np.sqrt(linear.mean()), COUNT // 2, price)
    program = program.normalised()[0]
    sides = Sides.worst_aligned(program)
    for larger in 10.0 ** np.arange(0.0, np.log10(share) - 0.1, -0.25):
        *_, (face, moved) = exchange.faces(program, sides, larger)
    assert moved == 0 and larger == pytest.approx(share)
    return program, sides, face


@pytest.mark.parametrize(("price", "radius"), [(10.0, 1.0), (0.004, 0.3)])
def test_a_face_of_the_undecided_is_that_of_all(price, radius):
    share = 1e-3
    program, sides, _ = settled(share, price, radius)
    assert sides.upper.any() == (price < 1.0)
    rng = np.random.default_rng(1)
    samples = np.flatnonzero((rng.random(COUNT) < 0.3) | sides.upper)
    undecided = Undecided(program, sides, samples, share)
    few = undecided.sides(sides)
    if not sides.upper.any():
        few.free ^= rng.random(len(samples)) < 0.2  # some other sides
    whole = sides.copy()
    undecided.put(few, whole)
    expected = Face.solve(program, whole, FreeSystems(program, share))
    face, _ = next(undecided.faces(few, share))
    assert face.bounded and expected.bounded
    np.testing.assert_allclose(face.xi, expected.xi[samples], atol=1e-9)
    np.testing.assert_allclose(face.gradient, expected.gradient[samples], atol=1e-9)


def test_the_ridge_of_those_eliminated_follows_to_first_order():
    program, sides, _ = settled(1e-3)
    samples = np.arange(0, COUNT, 3)
    expected = Face.solve(program, sides, FreeSystems(program, 1e-3)).xi[samples]
    errors = []
    for least in (5e-4, 7.5e-4):
        undecided = Undecided(program, sides, samples, least)
        face, _ = next(undecided.faces(undecided.sides(sides), 1e-3))
        errors.append(np.abs(face.xi - expected).max())
    assert errors[1] < errors[0] / 3 and errors[0] < 1e-2 * np.abs(expected).max()


def test_the_samples_in_doubt_are_those_that_move():
    program, sides, face = settled(1e-2)
    samples = in_doubt(program, sides, face, 1e-2)
    later = sides.copy()
    *_, (_, moved) = exchange.faces(program, later, 3e-3)
    changed = np.flatnonzero(later.free != sides.free)
    assert moved == 0 and len(changed) > 3 and len(samples) < 0.6 * COUNT
    assert np.mean(np.isin(changed, samples)) > 0.9


@pytest.mark.parametrize("heavy", [0.0, 1.5])
@pytest.mark.parametrize(("region", "radius"), [("difference", 1.0), ("norm", 0.5)])
def test_the_answer_is_that_of_cvxpy_on_the_primal(heavy, region, radius, monkeypatch):
    """At a rank of N/2 it is undecided whether any g aligns with all."""

    def refuse(program):
        raise AssertionError("the interior point was asked")

    monkeypatch.setattr(interior_point, "iterates", refuse)
    monkeypatch.setattr(ridge, "HARD", 0)  # every step counts as hard
    foreseen = []
    look = ridge._look_ahead
    monkeypatch.setattr(ridge, "_look_ahead", lambda *a: foreseen.append(look(*a)) or foreseen[-1])
    rows = rows_of(heavy, seed=3)
    problem = problem_of(rows, positives=COUNT // 2)
    answer = aggregate("capo", problem, radius=radius, region=region)
    value, _ = primal_by_cvxpy(rows, problem, radius, 10.0, region)
    assert any(foreseen) and abs(answer.report["gap"]) <= solver.CERTIFIED
    assert answer.report["primal"] == pytest.approx(
        value, abs=1e-7 * unit_of(rows, problem, radius)
    )
