from fractions import Fraction

import pytest

from capo_ds.tasks.answers import find_boxes
from capo_ds.tasks.answers.plain import parse_number, too_costly


def contents(text):
    return [box.content for box in find_boxes(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"so \boxed{16}", ["16"]),
        (r"\boxed{\frac{1}{2}}", [r"\frac{1}{2}"]),
        (r"\boxed{a{b{c}}} then \boxed{2}", ["a{b{c}}", "2"]),
        (r"\boxed{\boxed{3}}", [r"\boxed{3}"]),
        (r"\boxed{\{1\}}", [r"\{1\}"]),
        (r"\boxed{1} \boxed{2", ["1"]),
        (r"\boxed{2 \boxed{3}", ["3"]),
        (r"\boxed{}", [""]),
        (r"\boxed 5", []),
        (r"\\boxed{5}", []),
        (r"\\\boxed{5}", ["5"]),
        (r"\boxed{5\}", []),
        ("boxed{5}", []),
        ("", []),
    ],
)
def test_find_boxes(text, expected):
    assert contents(text) == expected


def test_box_offsets_span_the_whole_command():
    text = r"so \boxed{{1}}."
    (box,) = find_boxes(text)
    assert text[box.start : box.end] == r"\boxed{{1}}"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("27", 27),
        ("27.0", 27),
        ("27.", 27),
        (".5", Fraction(1, 2)),
        ("+027", 27),
        ("-3", -3),
        ("\N{MINUS SIGN}3", -3),
        (" 1,234,567 ", 1234567),
        ("1,234.50", Fraction(2469, 2)),
        ("1.5e3", 1500),
        ("2E-2", Fraction(1, 50)),
        ("3/4", Fraction(3, 4)),
        ("-6 / 8", Fraction(-3, 4)),
        ("0.1", Fraction(1, 10)),
        ("073", 73),
        ("$27$", 27),
        (r"\$27", 27),
        ("$27", 27),
        ("1{,}234", 1234),
        (r"1,\!234", 1234),
        (r"1\,234", 1234),
        (r"\frac{3}{4}", Fraction(3, 4)),
        (r"-\dfrac{3}{4}", Fraction(-3, 4)),
        (r"\frac34", Fraction(3, 4)),
        (r"\frac{-3}{4}", Fraction(-3, 4)),
        (r"1.5 \times 10^{3}", 1500),
        (r"2\cdot10^{-2}", Fraction(1, 50)),
        ("2 \N{MULTIPLICATION SIGN} 10^3", 2000),
    ],
)
def test_parse_number(text, value):
    assert parse_number(text) == value


@pytest.mark.parametrize(
    "text",
    ["", ".", "12,34", "1,2345", ",123", "1/0", "0x10", "1_000", "--3", "1 2", "nan", "2+2"],
)
def test_not_a_number(text):
    assert parse_number(text) is None


@pytest.mark.parametrize(
    "text", ["$", r"1\,23", r"\frac{3}{0}", r"\frac{a}{2}", r"3\frac{1}{2}", r"10\%"]
)
def test_latex_that_is_no_plain_number(text):
    assert parse_number(text) is None


@pytest.mark.parametrize(
    "text", ["1e65", "1e-65", "1e999999999", r"1\times 10^{999999999}", "9" * 65, "٣", "²"]
)
def test_costly_or_foreign_numbers_are_not_read(text):
    assert parse_number(text) is None


@pytest.mark.parametrize(
    "answer",
    [
        "x" * 513,
        "x+" + "9" * 65,
        "x^{1000000}",
        "5^{5^{5^{5}}}",
        "5^(5^(5^5))",
        "5^5^5",
        "x+٣",
        "(" * 33,
    ],
)
def test_too_costly(answer):
    assert too_costly(answer)


@pytest.mark.parametrize("answer", ["e^{x^{2}}", "x^2 y^2 z^2", "x^{12345}", "(((x)))", "}{)(", ""])
def test_not_too_costly(answer):
    assert not too_costly(answer)
