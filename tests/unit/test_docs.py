"""The pages hold together: links lead somewhere, and keys exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from capo_ds.config import Config

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
KEY = re.compile(r"`([a-z_]+)\.([a-z_]+)(?=[`:=])")
FILE_ENDINGS = {"py", "jsonl", "png", "yaml", "json", "sh"}  # `capo.py` is no key


def broken_links(page: Path, text: str) -> list[str]:
    """The relative links of a page that lead to no file."""
    targets = [link.split("#")[0] for link in LINK.findall(text) if "://" not in link]
    return [target for target in targets if target and not (page.parent / target).exists()]


def unknown_keys(text: str) -> list[str]:
    """`section.key` of a section of the config that it does not have."""
    default = Config()
    unknown = []
    for section, key in KEY.findall(text):
        part = getattr(default, section, None)
        if key in FILE_ENDINGS or not isinstance(part, BaseModel):
            continue
        if key not in type(part).model_fields:
            unknown.append(f"{section}.{key}")
    return unknown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path):
    assert broken_links(page, page.read_text()) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_keys_exist(page: Path):
    assert unknown_keys(page.read_text()) == []


def test_table_of_contents_is_complete():
    listed = set(LINK.findall((ROOT / "docs" / "README.md").read_text()))
    assert {page.name for page in PAGES[1:]} - {"README.md"} <= listed


def test_what_is_wrong_is_found():
    page = ROOT / "README.md"
    assert broken_links(page, "[a](docs/nowhere.md#b), [c](docs/README.md)") == ["docs/nowhere.md"]
    assert unknown_keys("`capo.radios: 1`, `capo.radius`") == ["capo.radios"]
