"""What the files that a run's settings name hold, for a continuation to see whether they still do.

Data and users' code are taken by SHA-256 of all of it; large weight files by their sizes, both
ends and the start of each tensor, since a model is too large to be read a second time.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from capo_ds.config import BUILTIN_MODELS, HOME, Config
from capo_ds.hub import adapter_snapshot, whole_snapshot
from capo_ds.own_code import remembered
from capo_ds.parts import MARK
from capo_ds.weight_files import safetensors_spans

PIECE = 2**20  # bytes at each end of a large file that its digest reads
TENSOR = 2**12  # bytes at the start of each of its tensors
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
MODELS = ("model.path", "model.adapter")
NO_CONTENT = (".md", ".lock")  # cards and notes, which nothing reads

# By file: the key that names it, and its digest.
Contents = dict[str, tuple[str, str]]


def digest(file: Path, whole: bool = True) -> str:
    """SHA-256 of a file's content; of one that is large, of samples unless `whole`."""
    size = file.stat().st_size
    with file.open("rb") as content:
        if whole or size <= 2 * PIECE:
            return hashlib.file_digest(content, "sha256").hexdigest()
        total = hashlib.sha256(f"{size} ".encode())
        for start, length in [(0, PIECE), (size - PIECE, PIECE), *_tensors(file)]:
            content.seek(start)
            total.update(content.read(length))
    return total.hexdigest()


def _tensors(file: Path) -> list[tuple[int, int]]:
    """Where a safetensors file's header and tensors start, with the bytes to read there."""
    if file.suffix != ".safetensors":
        return []
    try:
        begin, spans = safetensors_spans(file)
    except ValueError:
        return []  # it is none: what loads it says so
    return [(0, begin), *((begin + start, TENSOR) for start, _ in sorted(spans))]


def contents(config: Config, free: dict[str, set[Any]]) -> Contents:
    """Of all files that the settings name, once a run has loaded them.

    free: by section, keys (None: all) that are of no concern.
    """
    found: Contents = {}
    for key, text in texts("", config.model_dump(mode="json")):
        section, _, name = key.partition(".")
        if {None, name} & free.get(section, set()):
            continue
        for told, file in _files(key, text, config):
            whole = file.suffix not in WEIGHTS
            if told not in found and os.path.isfile(file) and os.access(file, os.R_OK):
                found[told] = key, digest(file, whole)
    return found


def changes(before: dict[str, Any], now: Contents, step: int) -> list[str]:
    """A line for each file that has another content than the checkpoint of that step has noted.

    before: `Contents`, or what JSON makes of them; files that are in one alone are passed over,
    for what the settings name is compared elsewhere.
    """
    return [
        f"{key}: {file} has changed since step {step}: the run goes on, but not as it would have"
        for file, (key, found) in now.items()
        if file in before and before[file][1] != found
    ]


def texts(key: str, value: object) -> Iterator[tuple[str, str]]:
    """Texts of the settings that could be names of files, each with its key."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from texts(f"{key}.{name}" if key else name, part)
    elif isinstance(value, list):
        for part in value:
            yield from texts(key, part)
    elif isinstance(value, str) and 0 < len(value) < 1024 and "\n" not in value:
        yield key, value


def file_part(text: str) -> str:
    """Of `file.py:NAME`, the file; of any other text, all of it."""
    return text.rpartition(":")[0] if MARK in text else text


def _files(key: str, text: str, config: Config) -> Iterator[tuple[str, Path]]:
    """The files that a text names, and what each is called."""
    if key in MODELS:
        folder = _model(key, text, config)
        for file in sorted(folder.iterdir()) if folder else []:
            if not (file.name.startswith(".") or file.suffix in NO_CONTENT):
                yield f"{text.rstrip('/')}/{file.name}", file
        return
    name = file_part(text)
    place = next((each for each in (Path(name), HOME / name) if os.path.isfile(each)), None)
    if place:
        yield name, place
        if MARK in text:
            yield from _neighbours(place)
    elif key.endswith("path") and os.path.isdir(name):
        yield from ((str(file), file) for file in sorted(Path(name).rglob("*")))


def _model(key: str, name: str, config: Config) -> Path | None:
    """A model's or an adapter's folder, here or in the hub's cache."""
    folder = Path(BUILTIN_MODELS.get(name, os.path.expanduser(name)))
    if os.path.isdir(folder):
        return folder
    if key == "model.adapter":
        return adapter_snapshot(name)
    return whole_snapshot(name, config.model.revision)


def _neighbours(file: Path) -> Iterator[tuple[str, Path]]:
    """What a user's file has imported of its own folder, and of those below."""
    folder = file.resolve().parent
    for module in list(sys.modules.values()):
        try:
            name = vars(module).get("__file__")
        except TypeError:  # some put other objects there
            continue
        place = Path(name).resolve() if isinstance(name, str) else None
        if place is None or str(place) in remembered() or not place.is_relative_to(folder):
            continue
        inner = place.relative_to(folder)
        if "site-packages" not in inner.parts and not place.is_relative_to(Path(__file__).parent):
            yield str(file.parent / inner), place
