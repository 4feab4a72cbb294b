"""A warm-up's folder: what can be saved there, and where an interrupted one goes on."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from capo_ds.config import Config, ConfigError
from capo_ds.distributed import comm
from capo_ds.run_folder import as_now, refuse_changes

CHECKPOINTS = "warmup_checkpoints"
STATE_FILE = "state.json"  # of the newest checkpoint; written after it
FREE = {"output_dir", "save_every", "resume"}  # of the section warmup, on resuming


def check_saving(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    """Save now, but for the weights, what is saved at the end.

    Raises:
        ConfigError: it cannot be, such as a generation_config with contradictions in it.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            model.config.save_pretrained(folder)
            if model.generation_config is not None:
                model.generation_config.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        except (ValueError, TypeError, OSError) as error:
            raise ConfigError(
                f"model.path: {path} could not be saved after its warm-up; correct its "
                f"generation_config.json, config or tokenizer: {' '.join(str(error).split())}"
            ) from error


def saved_state(config: Config) -> dict[str, Any] | None:
    """Of the checkpoint to go on from (rank 0 reads; on all ranks), or None for a fresh start.

    Raises:
        ConfigError: there is one, and it must not be gone on with, or cannot be.
    """
    key = "warmup.output_dir"
    folder = Path(config.warmup.output_dir) / CHECKPOINTS
    state = comm.on_main("resume", lambda: _read(folder / STATE_FILE))
    if state is None:
        return None
    if config.warmup.resume == "never":
        raise ConfigError(
            f"{key}: {folder.parent} holds an unfinished warm-up, at step {state['step']}; set "
            "warmup.resume=auto to go on with it, choose another folder, or delete it"
        )
    if state["ranks"] != comm.world_size():
        raise ConfigError(
            f"warmup.resume: the checkpoint in {folder} is of {state['ranks']} ranks, and there "
            f"are {comm.world_size()} now"
        )
    before = _deciding(as_now(_nested(state["settings"])))
    refuse_changes("warmup", before, deciding_settings(config))
    return state


def checkpoint_name(step: int) -> str:
    return f"step{step:06d}"


def write_state(folder: Path, state: dict[str, Any]) -> None:
    """Make the checkpoint of state["step"] the one to go on from, and remove those before it.

    The file is replaced in one go, and only then do others go: a crash at any moment leaves a
    state whose checkpoint is there.
    """
    new = folder / f"{STATE_FILE}.tmp"
    new.write_text(json.dumps(state))
    new.replace(folder / STATE_FILE)
    for path in folder.glob("step*"):
        if path.name != checkpoint_name(state["step"]):
            shutil.rmtree(path)


def last_word(folder: Path) -> str:
    """What is left to go on from, for one who ends a warm-up at once."""
    state = _read(folder / STATE_FILE)
    if state is None:
        return "no checkpoint has been written yet"
    return f"warmup.resume=auto goes on after step {state['step']}"


def deciding_settings(config: Config) -> dict[str, Any]:
    """`section.key` to value (JSON), of what decides the weights that a warm-up ends with."""
    return _deciding(config.model_dump(mode="json"))


def _deciding(told: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {
        f"{section}.{name}": value
        for section in ("model", "task", "prompt", "warmup")
        for name, value in told[section].items()
        if section != "warmup" or name not in FREE
    }


def _nested(settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """`deciding_settings` by section."""
    nested: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        section, _, key = name.partition(".")
        nested.setdefault(section, {})[key] = value
    return nested


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.exists() else None
