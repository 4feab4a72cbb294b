"""The judge on pairs of answers whose truth is known: `pairs.py`, and such as hypothesis makes."""

import sys
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capo_ds.tasks.answers.compare import Engine, compare, compare_numbers
from capo_ds.tasks.answers.symbols import Symbols
from capo_ds.tasks.outcome import Comparison

sys.path.insert(0, str(Path(__file__).parent))
from pairs import RIGHT, WRONG, pairs

EQUAL, DIFFERENT = Comparison.EQUAL, Comparison.DIFFERENT
ENGINE = Symbols()


def outcome(answer, reference):
    return compare_numbers(answer, reference) or compare(answer, reference, ENGINE)


@pytest.mark.parametrize("kind", RIGHT)
def test_what_means_the_same_is_right(kind):
    for answer, reference in pairs({kind: RIGHT[kind]}):
        assert outcome(answer, reference).comparison is EQUAL, (answer, reference)


@pytest.mark.parametrize("kind", WRONG)
def test_what_does_not_is_wrong_or_unparsed(kind):
    for answer, reference in pairs({kind: WRONG[kind]}):
        found = outcome(answer, reference)
        assert found.comparison is not EQUAL, (answer, reference)
        assert found.reason


def test_every_reference_is_right_for_itself():
    references = {reference for _, reference in pairs(RIGHT) + pairs(WRONG)}
    for reference in references:
        assert outcome(reference, reference).comparison is EQUAL, reference


FRACTIONS = st.fractions(min_value=-1000, max_value=1000, max_denominator=400)


def forms(value: Fraction):
    """Some ways to write a fraction."""
    sign, (n, d) = "-" if value < 0 else "", abs(value).as_integer_ratio()
    yield f"{sign}{n}/{d}"
    yield rf"{sign}\frac{{{n}}}{{{d}}}"
    yield rf"\dfrac{{{sign}{3 * n}}}{{{3 * d}}}"
    if d > 1 and n > d:
        yield rf"{sign}{n // d}\frac{{{n % d}}}{{{d}}}"
        yield f"x = {sign}{n // d} {n % d}/{d}"
    if d == 1:
        yield f"{sign}{n}.0"
        yield rf"{sign}{n} \text{{ apples}}"


@given(FRACTIONS, FRACTIONS)
@settings(max_examples=40, deadline=None)
def test_numbers_are_equal_when_their_values_are(x, y):
    for one in forms(x):
        for other in forms(y):
            assert (outcome(one, other).comparison is EQUAL) == (x == y), (one, other)


@given(st.lists(st.integers(-9, 9), min_size=2, max_size=4), st.randoms(use_true_random=False))
def test_order_is_for_tuples_alone(numbers, random):
    shuffled = random.sample(numbers, len(numbers))
    one, other = (", ".join(map(str, values)) for values in (numbers, shuffled))
    assert outcome(one, other).comparison is EQUAL
    assert outcome(rf"\{{{one}\}}", rf"\left\{{{other}\right\}}").comparison is EQUAL
    same = numbers == shuffled
    assert (outcome(f"({one})", f"({other})").comparison is EQUAL) == same
    assert outcome(f"({one})", one).comparison is DIFFERENT


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=4))
@settings(deadline=None, max_examples=15)
def test_a_product_is_its_expanded_polynomial_and_no_other(roots):
    product = "".join(f"(x{-root:+d})" for root in roots)
    coefficients = [1]
    for root in roots:
        shifted, scaled = [*coefficients, 0], [0, *(-root * c for c in coefficients)]
        coefficients = [a + b for a, b in zip(shifted, scaled, strict=True)]
    powers = range(len(coefficients) - 1, -1, -1)
    expanded = "".join(f"{c:+d}x^{{{p}}}" for c, p in zip(coefficients, powers, strict=True))
    assert outcome(expanded, product).comparison is EQUAL
    assert outcome(expanded + "+x", product).comparison is DIFFERENT


@given(st.text(max_size=40) | st.text(alphabet=r"\{}()[]^_/+-=,.:|$%&!' 0123x", max_size=60))
@settings(max_examples=300)
def test_any_text_is_read_or_refused(text):
    for reference in ("16", r"\frac12", "(1,2)", r"\text{yes}"):
        assert isinstance(compare(text, reference, Engine()).comparison, Comparison)


def test_reasons_and_types_are_told():
    found = outcome(r"\{2,4\}", "(2,4)")
    assert found == (DIFFERENT, "set where the reference is tuple", "set", "tuple")
    assert outcome("40+50", r"90^\circ").reason == (
        "arithmetic is left to the reader, or another value"
    )
    assert outcome(r"5 \text{ or more}", "5").given == "text"
    unread = outcome(r"10\,5", "15")
    assert unread == (Comparison.UNPARSED, "two numbers side by side", "", "number")
