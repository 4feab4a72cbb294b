"""The pages: their links, and the settings that they name."""

import re
from pathlib import Path

import pytest

from capo_ds.config import Config
from capo_ds.config.reading import _fields
from tests.conftest import REPOSITORY

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
KEYS = dict(_fields(Config))
NESTED = ("task.mixture", "evaluation.benchmarks", "reward.functions")  # lists of sections


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in link:
            assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_that_are_named_exist(page: Path) -> None:
    sections = {key.partition(".")[0] for key in KEYS if "." in key}
    named = re.findall(r"`([a-z_]+(?:\.[a-z_0-9]+)+)(?::[^`]*|=[^`]*)?`", page.read_text())
    files = (".yaml", ".py", ".md", ".json", ".jsonl", ".sh", ".png", ".html", ".txt", ".env")
    for name in named:
        if name.partition(".")[0] in sections and not name.endswith(files):
            assert (
                name in KEYS or name in NESTED or any(key.startswith(f"{name}.") for key in KEYS)
            ), name


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_headings(page: Path) -> None:
    for path, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", page.read_text()):
        if "://" not in path:
            target = page.parent / path if path else page
            assert anchor in anchors(target), f"{path}#{anchor}"


def test_every_page_is_in_the_table_of_contents() -> None:
    listed = re.findall(r"\]\(([^)]+)\)", (REPOSITORY / "docs" / "README.md").read_text())
    assert {page.name for page in PAGES} - {"README.md"} <= set(listed)


def test_files_and_functions_of_the_walk_exist() -> None:
    walk = (REPOSITORY / "docs" / "walk.md").read_text()
    package = REPOSITORY / "capo_ds"
    for file, name in re.findall(r"`([a-z_/]+\.py)(?::(\w+))?`", walk):
        places = [package / file, package / "aggregation" / file]
        found = [place for place in places if place.exists()]
        assert found, file
        assert not name or re.search(rf"^\s*(def|class) {name}\b", found[0].read_text(), re.M), name
