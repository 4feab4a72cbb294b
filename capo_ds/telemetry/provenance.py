"""What made a run: the code's version and commit, and the packages beneath it."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from importlib import metadata

from capo_ds.config import REPOSITORY

PACKAGES = ("torch", "deepspeed", "transformers", "peft")


def provenance() -> dict[str, str | None]:
    """Versions of capo_ds and of the packages that numbers depend on, and the git commit."""
    return {"commit": _commit(), "capo_ds": version("capo_ds")} | {
        name: version(name) for name in PACKAGES
    }


@cache
def version(package: str) -> str | None:
    """Of an installed package; None for one that is on the path without being installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit's hash, with `-dirty` where files differ from it; None without repository or git,
    and where git refuses (a repository of another user)."""
    if not (REPOSITORY / ".git").exists() or not shutil.which("git"):
        return None
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    told = subprocess.run(describe, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return told.stdout.strip() or None
