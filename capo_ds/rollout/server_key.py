"""The key without which a vLLM server answers nobody: it loads adapters for whoever may ask.

It stands in the environment variable CAPO_SERVER_KEY or in a file that its user alone can read,
never in settings, arguments or logs. (The standard library alone: a server's environment may hold
little else.)
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

VARIABLE = "CAPO_SERVER_KEY"
FILE = Path(".config") / "capo_ds" / "server_key"  # in the user's home
OTHERS = 0o077  # permissions of group and others


def key_file() -> Path:
    """Where the launcher of the server keeps it."""
    return Path.home() / FILE


def server_key() -> str | None:
    """The key, if there is one.

    Raises:
        PermissionError: others can read its file.
    """
    if key := os.environ.get(VARIABLE):
        return key
    path = key_file()
    if not path.exists():
        return None
    if path.stat().st_mode & OTHERS:
        raise PermissionError(f"others can read {path}: delete it, and start the server anew")
    return path.read_text().strip()


def made_key() -> str:
    """The key; a new one, written to its file, if there is none.

    Raises:
        PermissionError: others can read its file.
    """
    if key := server_key():
        return key
    path = key_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # an empty one
    key = secrets.token_urlsafe(32)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(key + "\n")
    return key
