"""The files and settings of docs/extending.md, as they stand there."""

import re
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import REPOSITORY

PAGE = (REPOSITORY / "docs" / "extending.md").read_text()
BLOCK = re.compile(r"```(python|yaml)\n(.*?)```", re.DOTALL)


def sections() -> dict[str, tuple[str, str, dict[str, Any]]]:
    """By kind of part: name of its file, content, and the settings that name it."""
    found = {}
    for section in PAGE.split("\n## ")[1:]:
        blocks = dict(BLOCK.findall(section))
        if blocks:
            name = re.match(r"# (\w+\.py)\n", blocks["python"])[1]
            kind = section.partition("\n")[0].lower()
            found[kind] = name, blocks["python"], yaml.safe_load(blocks["yaml"])
    return found


def write(folder: Path) -> None:
    """All files into a folder."""
    for name, content, _ in sections().values():
        (folder / name).write_text(content)
