"""What can be wrong with a file of a model's folder, by its first bytes and its length."""

from __future__ import annotations

import json
from pathlib import Path

from capo_ds.config import ConfigError
from capo_ds.config.text import LFS_POINTER

NAMED = 3  # of the files that are missing, how many are named


def problem(file: Path) -> str | None:
    """What is wrong with a file of a model's folder, and what to do; None if it looks whole."""
    if not file.exists():
        return "is a link to nothing; download it again"
    with open(file, "rb") as opened:
        start = opened.read(len(LFS_POINTER))
        if start == LFS_POINTER:
            return "is a Git LFS pointer, not the file itself; run `git lfs pull` in its folder"
        if file.suffix == ".safetensors":
            return _safetensors_problem(file)
    if file.stat().st_size == 0:
        return "is empty; download it again"
    if file.suffix == ".json":
        try:
            json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            return f"is no JSON ({error}); download it again"
    return None


def _safetensors_problem(file: Path) -> str | None:
    """The header of the format says how long the file must be."""
    size = file.stat().st_size
    try:
        begin, spans = safetensors_spans(file)
    except ValueError:
        return f"is cut off, or no safetensors file, at {size} bytes; download it again"
    expected = begin + max((end for _, end in spans), default=0)
    if size != expected:
        return f"has {size} bytes where its header tells of {expected}; download it again"
    return None


def safetensors_spans(file: Path) -> tuple[int, list[tuple[int, int]]]:
    """Where the header ends, and from there the start and the end of each tensor, in bytes. Raises
    `ValueError` for a file that is none of the format, or ends before."""
    size = file.stat().st_size
    with open(file, "rb") as opened:
        start = opened.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or 8 + length > size:
            raise ValueError(f"{file} has no header")
        try:
            header = json.loads(opened.read(length))
            tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
            spans = [(first, last) for first, last in (t["data_offsets"] for t in tensors)]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} has no header that can be read") from error
    return 8 + length, spans


def check_shards(index: Path) -> None:
    """Raises `ConfigError` for an index that cannot be read, or names files that are not there."""
    try:
        names = named_shards(index)
    except ValueError as error:
        raise ConfigError(f"model.path: {error}; download it again") from error
    if absent := sorted(name for name in names if not (index.parent / name).exists()):
        raise ConfigError(
            f"model.path: {index} names {len(names)} files, of which {len(absent)} are not there "
            f"({', '.join(absent[:NAMED])}); download them"
        )


def named_shards(index: Path) -> set[str]:
    """The files that an index of weights names. Raises `ValueError` for what is none."""
    try:
        return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{index} is no index of weights ({type(error).__name__}: {error})"
        ) from error
