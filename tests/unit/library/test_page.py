"""The examples of docs/library.md, run as they stand, one after the other, in one process."""

import json
import re
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY, clean_environment

EXAMPLES = re.findall(
    r"^```python\n(.*?)^```", (REPOSITORY / "docs" / "library.md").read_text(), re.M | re.S
)
RUN = """
import json, sys, traceback
told = []
for code in json.load(sys.stdin):
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
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        input=json.dumps(EXAMPLES),
        cwd=folder,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=540,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "told.json").read_text())


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_runs(told, number):
    assert told[number] is None, told[number]


def test_there_are_examples():
    assert len(EXAMPLES) >= 4
