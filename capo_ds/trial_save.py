"""The part of a rehearsal that writes: everything that a run will save, saved once at its start."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.utils.save_and_load import load_peft_weights
from transformers import PreTrainedTokenizerBase

from capo_ds.architecture import refused
from capo_ds.config import Config, ConfigError
from capo_ds.distributed import checkpoint, comm
from capo_ds.distributed.engine import CapoEngine

TRIAL = "step000000"  # name of the checkpoint
SAVING = "train.output_dir: what the run will save cannot be saved in a rehearsal"


def rehearse_saving(
    folder: Path, engine: CapoEngine, tokenizer: PreTrainedTokenizerBase, config: Config
) -> None:
    """Save what the run will save, a checkpoint with the adapter and the optimizer's moments, and
    the tokenizer; read the checkpoint again, and remove all (all ranks).

    Raises:
        ConfigError: on all ranks, if something cannot be written, or reads otherwise.
    """
    made = comm.on_main("rehearsal", lambda: tempfile.mkdtemp(prefix="rehearsal-", dir=folder))
    place = Path(made)
    try:
        with refused(lambda: SAVING):  # what an optimizer's state can lack, on all ranks alike
            _save(place, engine, config)
        with engine.whole(engine.parameters), comm.together("rehearsal"):
            if comm.is_main():
                _save_and_compare(place, engine.module, tokenizer)
    finally:
        if comm.is_main():
            shutil.rmtree(place)


def _save(place: Path, engine: CapoEngine, config: Config) -> None:
    try:
        checkpoint.save(place, TRIAL, engine, {"config": config.model_dump(mode="json")})
        whole = comm.on_main("rehearsal", lambda: checkpoint.newest(place) is not None)
    except comm.PeerError as error:
        raise ConfigError(f"{SAVING}: {error}") from error
    if not whole:
        raise ConfigError(f"{SAVING}: a checkpoint is read otherwise than it was written")


def _save_and_compare(place: Path, policy: PeftModel, tokenizer: PreTrainedTokenizerBase) -> None:
    kept = get_peft_model_state_dict(policy, save_embedding_layers=False)
    try:
        tokenizer.save_pretrained(place)
        read = load_peft_weights(
            str(place / checkpoint.CHECKPOINTS / TRIAL / checkpoint.ADAPTER), device="cpu"
        )
    except Exception as error:  # of as many kinds as there are tokenizers and file systems
        raise ConfigError(f"{SAVING}: {type(error).__name__}: {error}") from error
    wrong = [
        name
        for name in kept.keys() | read.keys()
        if name not in read or name not in kept or not torch.equal(kept[name].cpu(), read[name])
    ]
    if wrong:
        raise ConfigError(
            f"{SAVING}: the adapter that is read again differs in {len(wrong)} of {len(kept)} "
            f"tensors ({min(wrong)}); name other layers in model.lora_targets"
        )
