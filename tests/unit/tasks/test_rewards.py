import pytest

from capo_ds.tasks import Problem, Verdict, score

PROBLEM = Problem(prompt="?", answer="16")
RIGHT = Verdict(1.0, formatted=True, correct=True)
WRONG = Verdict(-0.5, formatted=True, correct=False)
UNFORMATTED = Verdict(-1.0, formatted=False, correct=False)


@pytest.mark.parametrize(
    ("completion", "verdict"),
    [
        (r"\boxed{16}", RIGHT),
        ("12+7=19\n19-3=16\n\\boxed{16}\n", RIGHT),
        (r"so $\boxed{16}$.", RIGHT),
        (r"so \( \boxed{16.0} \).", RIGHT),
        (r"\[\boxed{ 16 }\]", RIGHT),
        (r"\boxed{17}", WRONG),
        (r"\boxed{16 or 17}", WRONG),
        (r"\boxed{\{16\}}", WRONG),
        (r"\boxed{1e999999999}", WRONG),
        ("The answer is 16.", UNFORMATTED),
        ("", UNFORMATTED),
        (r"\boxed{}", UNFORMATTED),
        ("\\boxed{ \n}", UNFORMATTED),
        (r"\boxed 16", UNFORMATTED),
        (r"\boxed {16}", UNFORMATTED),
        (r"\boxed{16", UNFORMATTED),
        (r"\boxed{{16}", UNFORMATTED),
        (r"\boxed{16\}", UNFORMATTED),
        (r"\\boxed{16}", UNFORMATTED),
        (r"boxed{16}", UNFORMATTED),
        (r"\fbox{16}", UNFORMATTED),
        (r"\boxed{16} \boxed{16}", UNFORMATTED),
        (r"\boxed{15} no, \boxed{16}", UNFORMATTED),
        (r"\boxed{\boxed{16}}", UNFORMATTED),
        (r"\boxed{16} \boxed", UNFORMATTED),
        (r"\boxed{16} apples", UNFORMATTED),
        (r"\boxed{16}}", UNFORMATTED),
        (r"\boxed{16}17", UNFORMATTED),
    ],
)
def test_rule(completion, verdict):
    assert score([completion], [PROBLEM]) == [verdict]


def test_each_completion_meets_its_own_problem():
    other = Problem(prompt="?", answer="5")
    assert score([r"\boxed{16}", r"\boxed{16}"], [PROBLEM, other]) == [RIGHT, WRONG]


def test_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="2 completions for 1 problems"):
        score(["a", "b"], [PROBLEM])
