"""The room of the mathematics can be used without the rest of the house."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import capo_ds.aggregation

FILES = sorted(Path(capo_ds.aggregation.__file__).parent.glob("*.py"))
ALWAYS = {"__future__", "collections", "dataclasses", "functools", "pathlib", "time", "typing"}
ALWAYS |= {"inspect", "numbers", "warnings", "numpy", "scipy"}
TABLE = "capo_ds.parts"  # names and places of all parts that ship; it imports nothing
WHERE_USED = {"cvxpy", "torch", "torchjd"}  # inside functions: the fallback, and torchjd's


def imported(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name their module whole"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def foreign(names: set[str]) -> set[str]:
    outside = {name for name in names if not name.startswith(("capo_ds.aggregation", TABLE))}
    return {name for name in outside if name.partition(".")[0] not in ALWAYS} - {"capo_ds"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_file_imports_nothing_but_numpy_and_its_neighbours(file):
    tree = ast.parse(file.read_text())
    assert foreign(set().union(*map(imported, top_level(tree)))) == set()
    inside = foreign(imported(tree))
    assert {name.partition(".")[0] for name in inside} <= WHERE_USED
    assert not any(name.startswith("torch.") for name in inside)


def top_level(tree: ast.Module) -> list[ast.stmt]:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [node for node in tree.body if not isinstance(node, functions)] + [
        inner
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        for inner in node.body
        if not isinstance(inner, functions)
    ]


def test_importing_all_of_it_brings_in_nothing_heavy():
    modules = ", ".join(f"capo_ds.aggregation.{file.stem}" for file in FILES[1:])
    code = (
        f"import sys, {modules}\n"
        "heavy = {'torch', 'cvxpy', 'torchjd', 'deepspeed', 'pydantic', 'yaml', 'transformers'}\n"
        "own = {n for n in sys.modules if n.startswith('capo_ds')}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "own -= {'capo_ds', 'capo_ds.parent', 'capo_ds.parts'}\n"
        "assert all(n.startswith('capo_ds.aggregation') for n in own), own"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
