import subprocess
import sys

import pytest

from capo_ds.commands import judge
from tests.conftest import REPOSITORY


@pytest.mark.parametrize(
    ("answer", "reference", "status", "lines"),
    [
        ("1 4/5", r"\frac{9}{5}", 0, ["right: the same value", "reference read as  number"]),
        (
            r"\{2,4\}",
            "(2,4)",
            1,
            ["wrong: set where the reference is tuple", "  set"],
        ),
        (r"10\,5", "15", 1, ["unparsed: two numbers side by side", "answer read as     nothing"]),
        (r"so \boxed{16} apples", "16", 1, ["unformatted: not one closed"]),
        (r"it is $\boxed{16}$.", "16", 0, ["right", "reward of the rule +1"]),
        ("(x+1)^2", "x^2+2x+1", 0, ["right: the same value", "expression"]),
    ],
)
def test_one_answer_is_graded_and_explained(monkeypatch, capsys, answer, reference, status, lines):
    monkeypatch.setattr(sys, "argv", ["capo judge", answer, reference])
    with pytest.raises(SystemExit) as end:
        judge.main()
    assert end.value.code == status
    said = capsys.readouterr().out
    for line in lines:
        assert line in said


def test_a_wrong_call_is_told_apart_from_a_wrong_answer(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["capo judge", "1"])
    with pytest.raises(SystemExit) as end:
        judge.main()
    assert end.value.code == 2 and "REFERENCE" in capsys.readouterr().err
    assert "2 if the call is wrong" in judge.__doc__ and "judge -- '-2" in judge.__doc__
    page = (REPOSITORY / "docs" / "judge.md").read_text()
    assert "2 if the call is wrong" in page


def test_it_starts_as_a_command():
    words = [sys.executable, "-m", "capo_ds", "judge", "--", r"-2\le x\le 7", "[-2,7]"]
    result = subprocess.run(words, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert "right" in result.stdout
