"""Checkpoints that know nothing of ranks and ZeRO stages: factors and moments whole, by name.

A folder `checkpoints/step000020` holds `factors.safetensors` (each LoRA factor and its two Adam
moments, float32), `adapter/` (the factors in PEFT format), `rollouts.safetensors` (responses that
are still to be learned from, if there are any), `state.json` (what else the run needs) and
`manifest.json` (digests of the others). It is written under another name and takes its own
only when it is whole, so a crash at any moment leaves the checkpoint before it as the newest.
Rank 0 alone reads and writes; folders need not be shared between machines.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from capo_ds.distributed import comm
from capo_ds.distributed.engine import CapoEngine

CHECKPOINTS = "checkpoints"
ADAPTER = "adapter"
FACTORS, STATE, MANIFEST = "factors.safetensors", "state.json", "manifest.json"
ROLLOUTS = "rollouts.safetensors"
UNFINISHED = ".unfinished"


def save(
    run: Path,
    name: str,
    engine: CapoEngine,
    state: dict[str, Any],
    rollouts: dict[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint of the engine, `state` (JSON) and rollouts, if there are any, under
    run/checkpoints/name (all ranks).

    Raises `PeerError` on all ranks if it cannot be written; those before it are then untouched.
    """
    final = run / CHECKPOINTS / name
    folder = final.with_name(name + UNFINISHED)
    comm.on_main("saving", lambda: _start(folder))
    engine.save_adapter(folder / ADAPTER)
    factors, schedule = engine.state()

    def finish() -> None:
        save_file(factors, folder / FACTORS)
        if rollouts:
            save_file(rollouts, folder / ROLLOUTS)
        (folder / STATE).write_text(json.dumps({"engine": schedule, "run": state}))
        (folder / MANIFEST).write_text(json.dumps(_digests(folder)))
        _to_disk(folder)
        shutil.rmtree(final, ignore_errors=True)  # of an earlier try that turned out broken
        folder.rename(final)
        _to_disk(final.parent)

    comm.on_main("saving", finish)


def load(
    run: Path, engine: CapoEngine, check: Callable[[dict[str, Any]], None] | None = None
) -> dict[str, Any] | None:
    """Restore the newest whole checkpoint (all ranks); its `state`, or None if there is none.

    Broken ones are told and passed over. The run may have other ranks and another ZeRO stage.
    check: called with the state first; what it raises is raised.
    """
    folder = comm.on_main("resume", lambda: newest(run))
    if folder is None:
        return None
    found = comm.on_main("resume", lambda: json.loads((folder / STATE).read_text()))
    if check:
        check(found["run"])
    factors = {}
    with comm.together("resume"):
        if comm.is_main():
            factors = load_file(folder / FACTORS)
    engine.restore(factors, found["engine"])
    return found["run"]


def rollouts(folder: Path) -> dict[str, Tensor]:
    """Those that `save` wrote into the folder of a checkpoint."""
    return load_file(folder / ROLLOUTS) if (folder / ROLLOUTS).exists() else {}


def newest_state(run: Path) -> dict[str, Any] | None:
    """What `save` wrote beside the factors of the newest whole checkpoint, if there is one."""
    folder = newest(run)
    return folder and json.loads((folder / STATE).read_text())


def newest(run: Path) -> Path | None:
    """The folder of the newest whole checkpoint; says which newer ones are broken, and how."""
    for folder in reversed(whole_or_not(run)):
        problem = _problem(folder)
        if problem is None:
            return folder
        print(f"checkpoint {folder} is broken ({problem}): going on from the one before it")
    return None


def whole_or_not(run: Path) -> list[Path]:
    """Folders of all finished checkpoints, oldest first."""
    names = (run / CHECKPOINTS).glob("step*")
    return sorted(name for name in names if not name.name.endswith(UNFINISHED))


def rotate(run: Path, keep: int, always: set[str]) -> None:
    """Remove all but the newest `keep` and those named, and what crashes have left unfinished."""
    removable = [folder for folder in whole_or_not(run) if folder.name not in always]
    for folder in [*removable[:-keep], *(run / CHECKPOINTS).glob(f"*{UNFINISHED}")]:
        shutil.rmtree(folder)


def _start(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)


def _digests(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): _digest(file) for file in _files(folder)}


def _digest(file: Path) -> str:
    return blake2b(file.read_bytes(), digest_size=16).hexdigest()


def _problem(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None if it is whole."""
    try:
        expected = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        return f"no readable {MANIFEST}: {error}"
    for name, digest in expected.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if _digest(folder / name) != digest:
            return f"{name} is not as it was written"
    return None


def _to_disk(folder: Path) -> None:
    """Flush the files of a folder, and its list of names, out of the system's caches."""
    for path in [*folder.rglob("*"), folder] if folder.is_dir() else [folder]:
        if path.is_file() or path.is_dir():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
