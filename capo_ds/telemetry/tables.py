"""What is no scalar, for the services that show it: Weights & Biases and Comet.

DeepSpeed's monitor has the runs and writes the scalars; these go to the run it has opened.
"""

from __future__ import annotations

import importlib.util
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capo_ds.config import ConfigError
from capo_ds.distributed.launch import launched_rank

if TYPE_CHECKING:
    from capo_ds.distributed.zero import Writers

WANDB_ID = "wandb_id"  # file of a run's folder
PACKAGES = {"wandb": "wandb", "comet": "comet_ml"}
COLUMNS = (
    "prompt_number", "source", "prompt", "completion", "answer", "verdict", "length", "truncated",
    "reward", "advantage", "norm", "cosine_before", "cosine_after", "xi", "weight",
)  # fmt: skip


def check(names: Sequence[str]) -> None:
    """Raises `ConfigError` where a service of train.report_to is not installed."""
    for name in names:
        if name not in PACKAGES:
            continue
        found = importlib.util.find_spec(PACKAGES[name])
        if found is None or found.origin is None:  # a mere folder of that name, as W&B makes them
            raise ConfigError(
                f"train.report_to: {name} needs the package {PACKAGES[name]}; "
                f"pip install 'capo_ds[{name}]', or leave it out"
            )


def check_login(names: Sequence[str]) -> None:
    """Raises `ConfigError` where Weights & Biases would ask for a key: no rank can answer it."""
    if "wandb" not in names or os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        return
    import wandb

    if not (wandb.api.api_key or os.environ.get("WANDB_API_KEY")):
        raise ConfigError(
            "train.report_to: wandb has no key; run `wandb login`, set WANDB_API_KEY, or "
            "WANDB_MODE=offline"
        )


@contextmanager
def named(names: Sequence[str], folder: Path) -> Iterator[None]:
    """Inside, a service that opens a run finds in the environment what the run of this folder is,
    unless the user's environment says so already.

    Weights & Biases: where it keeps its files, what it calls the run, and the run's id, which is
    kept in the folder: a resumed run goes on with its own curves.
    """
    told: dict[str, str] = {}
    if "wandb" in names and launched_rank() == 0:
        kept = folder / WANDB_ID
        if not kept.exists():
            folder.mkdir(parents=True, exist_ok=True)
            kept.write_text(uuid.uuid4().hex[:8])
        told = {"WANDB_DIR": str(folder), "WANDB_NAME": folder.name}
        told |= {"WANDB_RUN_ID": kept.read_text(), "WANDB_RESUME": "allow"}
    added = {name: value for name, value in told.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:  # another run of this process has another id
        for name in added:
            os.environ.pop(name, None)


def settings(writers: Writers, config: dict[str, Any]) -> None:
    """The run's settings, nested as in its config.yaml."""
    if writers.wandb:
        import wandb

        wandb.config.update(config, allow_val_change=True)
    if writers.comet:
        writers.comet.log_parameters(config)


def samples(writers: Writers, step: int, samples: list[dict[str, Any]]) -> None:
    """The responses of a step, as a table."""
    rows = [[sample[column] for column in COLUMNS] for sample in samples]
    if writers.wandb:
        import wandb

        wandb.log({"samples": wandb.Table(columns=list(COLUMNS), data=rows)}, step=step)
    if writers.comet:
        writers.comet.log_table(f"samples-{step:06d}.csv", tabular_data=rows, headers=list(COLUMNS))
