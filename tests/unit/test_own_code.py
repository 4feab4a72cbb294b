"""Where in a user's file an error happened."""

import pytest

from capo_ds.config import ConfigError
from capo_ds.own_code import place
from capo_ds.plugins import make_part, named

SOURCE = """
class Sampler:
    def __init__(self, run=None, size: int = 1):
        self.shape = self.measure(size)

    def measure(self, size):
        return [0][size]

def chained():
    try:
        {}["key"]
    except KeyError as error:
        raise RuntimeError("no key") from error
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "placed.py"
    path.write_text(SOURCE)
    return path


def test_of_a_class_that_cannot_be_made(file):
    with pytest.raises(ConfigError) as told:
        make_part("sampler", "rollout.sampler", f"{file}:Sampler")
    text = str(told.value)
    assert text.startswith(f"rollout.sampler: {file}:Sampler cannot be made: IndexError: ")
    assert text.count(f'File "{file}"') == 2
    assert "line 4, in __init__" in text and "line 7, in measure\n    return [0][size]" in text


@pytest.mark.parametrize(
    ("line", "told"),
    [("x = nothing", "NameError.*\n.*line 1, in <module>\n *x = nothing"),
     ("def f(:", "SyntaxError.*\n.*line 1\n *def f")],
)  # fmt: skip
def test_of_a_file_that_does_not_run(tmp_path, line, told):
    (tmp_path / "broken.py").write_text(line + "\n")
    with pytest.raises(ConfigError, match=told):
        named("aggregator", f"{tmp_path}/broken.py:f")


def test_the_first_cause_is_shown(file):
    with pytest.raises(RuntimeError) as told:
        named("objective.name", f"{file}:chained")()
    assert 'line 11, in chained\n    {}["key"]' in place(told.value)


def test_of_an_error_elsewhere_there_is_none(file):
    named("objective.name", f"{file}:chained")
    with pytest.raises(ValueError) as told:
        int("x")
    assert place(told.value) == "" and place(None) == ""
