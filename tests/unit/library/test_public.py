"""The public names: those of the page, typed, and free of charge until they are used."""

import ast
import re
import subprocess
import sys

import pytest

import capo_ds
from tests.conftest import REPOSITORY

SOURCE = ast.parse((REPOSITORY / "capo_ds" / "__init__.py").read_text())
LIGHT = ("GramProblem", "SolverError", "Combination", "aggregate", "capo")


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return done.stdout


def test_importing_the_package_brings_in_nothing_of_others():
    code = (
        "import sys; before = set(sys.modules); import capo_ds; print(*(set(sys.modules)-before))"
    )
    brought = {name.partition(".")[0] for name in run(code).split()}
    assert brought <= {"capo_ds", *sys.stdlib_module_names}, brought


def test_names_of_the_mathematics_need_no_torch():
    used = "; ".join(f"capo_ds.{name}" for name in LIGHT)
    code = f"import sys, capo_ds; {used}; print(*sys.modules)"
    heavy = {"torch", "cvxpy", "deepspeed", "transformers", "pydantic", "yaml", "capo_ds.config"}
    assert not heavy & set(run(code).split())


@pytest.mark.parametrize("name", sorted(set(capo_ds.__all__) - {"__version__"}))
def test_every_name_is_there_and_says_what_it_is(name):
    value = getattr(capo_ds, name)
    assert value.__doc__ and name in dir(capo_ds)
    assert vars(capo_ds)[name] is value  # the second time it costs a look into a dictionary


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'capo_ds' has no attribute 'cappo'"):
        capo_ds.cappo  # noqa: B018
    with pytest.raises(ImportError):
        from capo_ds import cappo  # noqa: F401


def test_type_checkers_see_the_places_that_names_come_from():
    checked = next(node for node in SOURCE.body if isinstance(node, ast.If))
    typed = {
        alias.name: node.module
        for node in checked.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == capo_ds._PLACES
    assert sorted(capo_ds.__all__) == sorted([*typed, "__version__"])


def test_the_page_lists_the_public_names():
    page = (REPOSITORY / "docs" / "library.md").read_text()
    rows = re.findall(r"^\| (`.*?) \|", page.partition("## What is public")[2], re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", " ".join(rows))) == sorted(capo_ds.__all__)
