"""The examples of docs/library.md, run as they stand, one after the other, in one process."""

import json
import re

import pytest

from tests.conftest import REPOSITORY, launch

EXAMPLES = re.findall(
    r"^```python\n(.*?)^```", (REPOSITORY / "docs" / "library.md").read_text(), re.M | re.S
)
RUN = """
import json, os, sys, traceback
os.chdir(sys.argv[1])
told = []
for code in json.load(open("examples.json")):
    try:
        exec(compile(code, "example", "exec"), {"__name__": "__main__"})
        told.append(None)
    except Exception:
        told.append(traceback.format_exc())
json.dump(told, open("told.json", "w"))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What each example raised."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "examples.json").write_text(json.dumps(EXAMPLES))
    (folder / "run.py").write_text(RUN)
    launch(1, folder / "run.py", folder)
    return json.loads((folder / "told.json").read_text())


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_runs(told, number):
    assert told[number] is None, told[number]


def test_there_are_examples():
    assert len(EXAMPLES) >= 4
