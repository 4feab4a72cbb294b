"""Write docs/configuration.md from the typed config: python docs/configuration.py"""

from __future__ import annotations

import re
from itertools import groupby
from pathlib import Path

from capo_ds.config import Config, config_reference

HEAD = """# Configuration

Every key, its type, default and meaning. Written by `python docs/configuration.py` from
the types in `capo_ds/config/`, as `launchers/train.py --help` is; do not edit it here. A YAML file
sets what differs from the defaults; `--set key=value` overrides it.
"""
ENTRY = re.compile(
    r"(?P<key>\S+) \((?P<type>.*), (?:default (?P<default>.*)|required)\)\n    (?P<meaning>.*)"
)


def page() -> str:
    """The whole page."""
    entries = list(ENTRY.finditer(config_reference()))
    parts = [HEAD]
    entries.sort(key=lambda entry: _section(entry) != "")  # keys outside any section stand first
    for section, group in groupby(entries, key=_section):
        meaning = Config.model_fields[section].annotation.__doc__ if section else "The whole run."
        rows = "".join(map(_row, group))
        parts.append(
            f"## {f'`{section}`' if section else 'Top level'}\n\n{meaning}\n\n"
            f"| key | type | default | meaning |\n|---|---|---|---|\n{rows}"
        )
    return "\n".join(parts)


def _section(entry: re.Match) -> str:
    return entry["key"].partition(".")[0] if "." in entry["key"] else ""


def _row(entry: re.Match) -> str:
    default = f"`{entry['default']}`" if entry["default"] else "(required)"
    cells = [f"`{entry['key']}`", entry["type"], default, entry["meaning"]]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(page())
