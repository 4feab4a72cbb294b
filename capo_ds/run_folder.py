"""A run's folder: made and locked by one run at a time, and gone on with under its own settings."""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
import warnings
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from pydantic import ValidationError

from capo_ds.config import Config, ConfigError, EvaluationConfig, WarmupConfig
from capo_ds.distributed import checkpoint, comm
from capo_ds.parts import FORMER
from capo_ds.telemetry.metrics import METRICS_FILE

LOCK_FILE = ".lock"

# What may differ between a run and its continuation: nothing that decides what is learned.
FREE_ON_RESUME = {
    "train": {
        "steps",
        "eval_every",
        "save_every",
        "keep_checkpoints",
        "log_samples_every",
        "report_to",
        "stop_on_divergence",
    }
    | {"micro_batch_size", "micro_batch_tokens", "output_dir", "resume"},
    "rollout": {"batch_size", "vllm_cache_gib", "server_url", "timeout", "probe_bound"},
    "reward": {"workers"},
    "evaluation": set(EvaluationConfig.model_fields),
    "warmup": set(WarmupConfig.model_fields),
    "deepspeed": {None},  # a checkpoint is of no ZeRO stage
}


class FolderLock:
    """Keeps other processes out of a folder until `release`, or until this process ends.

    The system holds the lock (of fcntl, which network file systems know too), so that of a run
    that was killed is gone with it. Where a file system has none, a warning says so.

    Raises:
        ConfigError: the folder cannot be written, or another process has it.
    """

    def __init__(self, key: str, folder: Path):
        """key: of the config that names the folder, for messages."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
            self._file = open(folder / LOCK_FILE, "a+")  # noqa: SIM115 - open as long as it is held
        except OSError as error:
            raise ConfigError(
                f"{key}: {folder} cannot be written ({error}); choose another folder"
            ) from error
        try:
            _lock(self._file, key, folder)
        except ConfigError:
            self._file.close()
            raise
        now = datetime.now().astimezone().isoformat(" ", "seconds")
        try:
            self._file.truncate(0)
            self._file.write(f"process {os.getpid()} on {socket.gethostname()}, since {now}\n")
            self._file.flush()
        except OSError as error:  # the disk is full
            raise ConfigError(
                f"{key}: {folder} cannot be written ({error}); make room, or choose another folder"
            ) from error

    def release(self) -> None:
        self._file.close()


def check_folder(key: str, folder: Path) -> None:
    """What `FolderLock` would raise, without making or holding anything."""
    _check_place(key, folder)
    if (folder / LOCK_FILE).exists():
        try:
            with open(folder / LOCK_FILE, "a+") as file:
                _lock(file, key, folder)
        except OSError as error:
            raise ConfigError(f"{key}: {folder} cannot be written ({error})") from error
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise ConfigError(
            f"{key}: {folder} cannot be made in {there} ({error.strerror}); choose another folder"
        ) from error


def _check_place(key: str, folder: Path) -> None:
    """Raises `ConfigError` for a path that the system takes for none, such as one of a too long
    name, a link in a circle, or what lies in a file."""
    try:
        folder.stat()
    except FileNotFoundError as error:
        if folder.is_symlink():
            raise ConfigError(f"{key}: {folder} is a link to nowhere; make its folder") from error
    except OSError as error:
        raise ConfigError(
            f"{key}: {folder} cannot be a folder ({error.strerror}); choose another folder"
        ) from error


def _lock(file: IO[str], key: str, folder: Path) -> None:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.seek(0)
        raise ConfigError(
            f"{key}: {folder} is in use by {file.read().strip() or 'another process'}; wait for "
            "it, or choose another folder"
        ) from error
    except OSError as error:
        warnings.warn(
            f"{folder} is on a file system without locks ({error}): see to it that no other run "
            "writes there",
            stacklevel=2,
        )


def claim_run(config: Config, dry: bool = False) -> FolderLock | None:
    """Take the run's folder (rank 0; others only look); dry: only say whether it could be taken.

    Raises:
        ConfigError: it holds a run that is not to be resumed, is in use, or cannot be written.
    """
    folder = Path(config.train.output_dir)
    _check_place("train.output_dir", folder)
    if config.train.resume == "never" and (folder / METRICS_FILE).exists():
        raise ConfigError(
            f"train.output_dir: {folder} already holds a run; choose another folder, delete it, "
            "or set train.resume=auto to go on with it"
        )
    if not comm.is_main():
        return None
    if dry:
        return check_folder("train.output_dir", folder)
    return FolderLock("train.output_dir", folder)


def going_on(folder: Path) -> str:
    """Where a run that ends now would be gone on with; for last words."""
    saved = checkpoint.whole_or_not(folder)
    if not saved:
        return "no checkpoint has been written yet: a new start begins at step 1"
    return f"train.resume=auto goes on after step {int(saved[-1].name.removeprefix('step'))}"


def adapters(folder: Path) -> list[Path]:
    """The saved factors of a run, oldest first, each a folder that `model.adapter` can name."""
    return [saved / checkpoint.ADAPTER for saved in checkpoint.whole_or_not(folder)]


def check_resume(config: Config) -> None:
    """What resuming would raise of the newest checkpoint's settings; reads on rank 0."""
    if config.train.resume == "auto":
        state = comm.on_main(
            "resume", lambda: checkpoint.newest_state(Path(config.train.output_dir))
        )
        if state:
            check_unchanged(config, state["run"])


def check_unchanged(config: Config, state: dict[str, Any]) -> None:
    """Raises `ConfigError` naming the settings that a resumed run must keep and does not."""
    refuse_changes(
        "train",
        _deciding_settings(as_now(state["config"])),
        _deciding_settings(config.model_dump(mode="json")),
        from_there=adapters(Path(config.train.output_dir)),
    )


def as_now(settings: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's settings in the words of this version, with keys that it did not have at
    their defaults; as they are, where this version does not take them."""
    name = settings.get("aggregator")
    settings = settings | ({"aggregator": FORMER["aggregator"].get(name, name)} if name else {})
    try:
        return Config.model_validate(settings).model_dump(mode="json")
    except ValidationError:
        return settings


def refuse_changes(
    section: str,
    before: dict[str, Any],
    now: dict[str, Any],
    from_there: Sequence[Path] = (),
) -> None:
    """Raises `ConfigError` where the settings of a checkpoint and those of now differ.

    section: whose `resume` and `output_dir` the message names. from_there: adapters that a new run
    could begin with.
    """
    changed = [
        f"{name}: {before.get(name)!r} in the checkpoint, {now.get(name)!r} now"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if changed:
        other = f"choose another {section}.output_dir"
        if from_there:
            other += f" (and model.adapter: {from_there[-1]} to begin with what was learned)"
        raise ConfigError(
            f"{section}.resume: the checkpoint was made with other settings; restore them, or "
            f"{other}\n" + "\n".join(changed)
        )


def _deciding_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """`section.key` to value, but for what may differ between a run and its continuation."""
    flat = {}
    for section, values in settings.items():
        for key, value in values.items() if isinstance(values, dict) else [(None, values)]:
            if key not in FREE_ON_RESUME.get(section, ()):
                flat[f"{section}.{key}" if key else section] = value
    if not settings["rollout"].get("ahead"):  # null was not a word of the first versions
        flat["rollout.importance_correction"] = flat["rollout.importance_correction"] or "none"
    if settings["optimizer"]["schedule"] != "constant":  # it ends with the last step
        flat["train.steps"] = settings["train"]["steps"]
    return flat
