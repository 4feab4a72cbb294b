"""A run from a script or a notebook."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from capo_ds import cli, trainer
from capo_ds.callbacks import Callback
from capo_ds.config import Config, ConfigError
from capo_ds.distributed import comm
from capo_ds.hub import fetch_once
from capo_ds.telemetry.metrics import read_metrics

GROUP = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_ranks = 1  # of the first group that was made in this process


@dataclass(frozen=True)
class RunResult:
    """Where a run stands.

    Attributes:
        folder: `train.output_dir`, with all that the run has written.
        step: how many steps it has made.
        finished: it has come to its end, or to the one that a callback asked for; False after
            Ctrl-C, from where `train.resume: auto` goes on.
        accuracy: on the first benchmark, `before`, `latest`, `best`; None where not measured.
    """

    folder: Path
    step: int
    finished: bool
    accuracy: dict[str, float | None]

    @property
    def adapter(self) -> Path:
        """Folder of the trained adapter, in PEFT format, once the run is finished."""
        return self.folder / "adapter"

    @property
    def metrics(self) -> list[dict[str, float]]:
        """The lines of the log, one a step."""
        return read_metrics(self.folder)


class Trainer:
    """A run, as `capo train` makes it, from one's own process.

    Without a launcher this process is the only rank; its process group lasts as long as `run`, and
    another Trainer may follow. In a script that deepspeed or torchrun starts, each process is one
    rank and makes the same Trainer. A process group that is there already is used and left.

    Args:
        config: from `load_config`.
        callbacks: called on rank 0.
    """

    def __init__(self, config: Config, callbacks: Sequence[Callback] = ()):
        self.config, self.callbacks = config, list(callbacks)

    def run(self) -> RunResult:
        """Train from the first step (or the checkpoint's) to the last, writing all outputs.

        The first Ctrl-C ends it after the step, with a checkpoint; the second is a
        KeyboardInterrupt.

        Raises:
            ConfigError: a setting cannot be used.
            RuntimeError: a phase, a reward or a callback has failed, on some rank.
        """
        with _process_group(self.config):
            try:
                return self._run()
            except (ConfigError, comm.PeerError):  # known to all ranks
                raise
            except Exception as error:
                comm.tell_peers(f"rank {comm.rank()}: {type(error).__name__}: {error}")
                raise
            finally:
                gc.collect()  # engine and model are in circles, and their memory is large

    def _run(self) -> RunResult:
        run = trainer.Trainer(self.config, self.callbacks, embedded=True)
        try:
            finished = run.run()
        finally:
            if run.lock:
                run.lock.release()
        return RunResult(run.folder, run.state.step, finished, dict(run.state.accuracy))


@contextmanager
def _process_group(config: Config) -> Iterator[None]:
    """Inside, there is one; what it needs of the environment is gone with it."""
    if dist.is_initialized():
        cli.check(config)
        yield
        return
    global _ranks
    if _ranks > 1:  # the launcher's store still has the addresses of the group before
        raise ConfigError(
            f"a second Trainer in the processes of {_ranks} ranks: ranks meet once in a process; "
            "launch the script once for each run"
        )
    before = {name: os.environ.get(name) for name in GROUP}
    try:
        cli.start(config)
        fetch_once(config)
        _ranks = comm.world_size()
        yield
    finally:
        comm.finish()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
