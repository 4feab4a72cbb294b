"""The parts of the solver: cone algebra, interior point, polish, projection, reference."""

from __future__ import annotations

import numpy as np
import pytest
from gradient_families import FAMILIES, gradients
from scipy.optimize import nnls

from capo_ds.aggregation import interior_point, reference, solver
from capo_ds.aggregation.exchange import Sides, exchange
from capo_ds.aggregation.lorentz import Lorentz, Scaling
from capo_ds.aggregation.polish import polish
from capo_ds.aggregation.program import ConeProgram


def program_of(rows, positives, radius=0.5, price=10.0):
    gram = rows @ rows.T
    linear = gram.mean(axis=1)
    return ConeProgram(gram, linear, radius * np.sqrt(linear.mean()), positives, price)


@pytest.fixture
def cone():
    """An interior element of the cone over the span of three vectors, from coefficients."""
    gram = np.array([[2.0, 0.3, 0.1], [0.3, 1.0, -0.2], [0.1, -0.2, 0.5]])

    def element(coefficients, room):
        tail = np.array(coefficients)
        return Lorentz(np.sqrt(tail @ gram @ tail) + room, np.stack([tail, gram @ tail]))

    return element


def test_scaling_maps_both_points_to_one(cone):
    s, z = cone([1.0, -2.0, 0.5], 0.3), cone([-0.4, 0.1, 2.0], 0.01)
    scaling = Scaling.between(s, z)
    left, right = scaling.apply(z), scaling.invert(s)
    assert left.head == pytest.approx(right.head, rel=1e-12)
    np.testing.assert_allclose(left.tail, right.tail, rtol=1e-10, atol=1e-12)
    back = scaling.invert(scaling.apply(s))
    np.testing.assert_allclose(back.tail, s.tail, rtol=1e-10)
    assert left.dot(right) == pytest.approx(s.dot(z), rel=1e-12)


def test_jordan_division_inverts_the_product(cone):
    x, y = cone([1.0, -2.0, 0.5], 0.3), cone([0.2, 0.1, -1.0], 2.0)
    quotient = x.divide_into(x.product(y))
    assert quotient.head == pytest.approx(y.head, rel=1e-12)
    np.testing.assert_allclose(quotient.tail, y.tail, rtol=1e-10)


def test_step_to_the_boundary(cone):
    x, towards = cone([1.0, 0.0, 0.0], 1.0), cone([-3.0, 1.0, 0.0], -2.0)
    length = x.steps_inside(towards)
    assert (x + towards * length).determinant() == pytest.approx(0.0, abs=1e-9)
    assert (x + towards * (0.99 * length)).determinant() > 0.0
    assert x.steps_inside(x) == np.inf


@pytest.mark.parametrize("family", FAMILIES)
def test_iterates_are_feasible_pairs_of_falling_gap(family):
    program, _ = program_of(gradients(family, 40, 0), positives=15).normalised()
    gaps = []
    for pair in interior_point.iterates(program):
        assert pair.xi[:15].sum() == pytest.approx(1.0, abs=1e-6)
        assert pair.xi.min() >= 0.0 and pair.xi[15:].max() <= 10.0
        assert program.direction_norm(pair.step) <= program.radius * (1 + 1e-6)
        assert pair.gap >= -1e-8
        gaps.append(pair.gap)
    assert min(gaps) <= 1e-7
    assert gaps.index(min(gaps)) <= 40


@pytest.mark.parametrize("family", ["orthogonal", "shared", "mixed", "heavy", "conflict"])
def test_polish_makes_xi_exact(family):
    program, _ = program_of(gradients(family, 30, 1), positives=12).normalised()
    rough = next(pair for pair in interior_point.iterates(program) if pair.gap <= 1e-4)
    assert program.gap(rough.xi, program.boundary_step(rough.xi)) > 1e-8
    xi, gap = polish(program, rough.xi, rough.free)
    assert 0.0 <= abs(gap) <= 1e-9
    assert abs(program.gap(xi, program.boundary_step(xi))) <= 1e-9
    assert xi.min() >= 0.0 and xi[:12].sum() == pytest.approx(1.0, abs=1e-12)


def test_normalised_program_has_the_same_weights():
    program = program_of(1e9 * gradients("mixed", 12, 0), positives=5)
    scaled, step_unit = program.normalised()
    xi = np.full(12, 0.2)
    np.testing.assert_allclose(
        program.boundary_step(xi), step_unit * scaled.boundary_step(xi), rtol=1e-12
    )
    assert scaled.radius == 1.0 and np.sqrt(np.mean(scaled.norms**2)) == pytest.approx(1.0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("positives", [5, 100])
def test_leaving_samples_out_first_changes_nothing(family, positives):
    program, _ = program_of(gradients(family, 288, 4), positives).normalised()
    whole = solver._interior_point(program)
    staged = solver._staged(program)
    unit = program.cancellation_scale(whole.xi)
    assert whole.certified and staged.certified
    assert program.dual_value(staged.xi) == pytest.approx(
        program.dual_value(whole.xi), abs=1e-7 * unit
    )


def test_samples_left_out_at_first_are_taken_back():
    """The best aligned samples bind all the same if dg points away from them."""
    program, _ = program_of(gradients("orthogonal", 300, 0), positives=150, radius=2.0).normalised()
    solution = solver._staged(program)
    left_out = ~Sides.worst_aligned(program).free
    assert solution.certified and np.count_nonzero(solution.xi[left_out]) > 10


@pytest.mark.parametrize("family", ["orthogonal", "shared", "mixed", "heavy", "conflict"])
@pytest.mark.parametrize("radius", [0.1, 0.5, 1.0, 2.0])
def test_exchange_solves_the_dual_from_any_start(family, radius):
    """Against the interior point, which shares nothing with it."""
    program, _ = program_of(gradients(family, 120, 3), 50, radius).normalised()
    slow = solver._interior_point(program)
    unit = program.cancellation_scale(slow.xi)
    solved = 0
    for start in (np.ones(120, bool), program.linear < 0.0, np.arange(120) == 7):
        found = exchange(program, Sides(start, np.zeros(120, bool)))
        if found.gap <= 1e-8:
            solved, xi = solved + 1, found.xi
            value = program.dual_value(xi)
            assert value == pytest.approx(program.dual_value(slow.xi), abs=1e-7 * unit)
            assert xi.min() >= 0.0 and xi[:50].sum() == pytest.approx(1.0, abs=1e-12)
            assert xi[50:].max() <= program.price
    assert solved >= 1


def test_a_face_is_solved_in_closed_form():
    """The worked example, both samples free: xi = (1, 7), as in docs/mathematics.md."""
    rows = np.array([[7.0, -2.0], [-1.0, 2.0]])
    found = exchange(program_of(rows, 1), Sides(np.ones(2, bool), np.zeros(2, bool)))
    np.testing.assert_allclose(found.xi, [1.0, 7.0], rtol=1e-9)
    assert abs(found.gap) <= 1e-12


def test_the_projection_for_zero_direction_is_that_of_all_samples():
    """300 samples in 6 dimensions, against nonnegative least squares."""
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(300, 6)) + np.array([1.5, 0.0, 0.0, 0.0, 0.0, 0.0])
    rows[0] = -rows[1:4].mean(axis=0)
    centre = rng.normal(size=6)
    program = ConeProgram(rows @ rows.T, rows @ centre, 2 * np.linalg.norm(centre), 300, 10.0)
    solution = solver.solve(program)
    weights, _ = nnls(rows.T, -centre, maxiter=10_000)
    assert not solution.on_boundary and solution.certified
    np.testing.assert_allclose(solution.step @ rows, weights @ rows, atol=1e-8)


@pytest.mark.parametrize("family", FAMILIES)
def test_clarabel_finds_no_better_xi(family):
    program, _ = program_of(gradients(family, 24, 9), positives=10).normalised()
    ours = solver.solve(program)
    theirs = reference.solve_dual(program)
    assert ours.certified and not ours.fallback
    unit = program.cancellation_scale(theirs)
    assert program.dual_value(ours.xi) == pytest.approx(program.dual_value(theirs), abs=1e-6 * unit)
    assert program.dual_value(ours.xi) <= program.dual_value(theirs) + 1e-8 * unit


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_two_thousand_samples(family):
    solution = solver.solve(program_of(gradients(family, 2048, 0), positives=1000))
    assert solution.certified and not solution.fallback


def test_square_root_drops_the_null_space():
    rows = gradients("low_rank", 12, 0)
    root = reference.square_root(rows @ rows.T)
    assert root.shape == (12, 4)
    np.testing.assert_allclose(root @ root.T, rows @ rows.T, atol=1e-12)
