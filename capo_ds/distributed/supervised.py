"""A DeepSpeed engine that trains all parameters of a model on an ordinary loss."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from capo_ds.config import ConfigError
from capo_ds.distributed import comm
from capo_ds.distributed.deepspeed_json import read_deepspeed_json, zero_stage
from capo_ds.distributed.zero import import_deepspeed

BETAS = (0.9, 0.98)
WEIGHT_DECAY = 0.01
MAX_GRADIENT_NORM = 1.0
Batch = TypeVar("Batch")


class SupervisedEngine:
    """`deepspeed.initialize` with torch's AdamW, fed with losses that sum to the global loss."""

    def __init__(
        self, model: nn.Module, deepspeed_path: str, micro_batch_size: int, micro_batches: int
    ):
        """micro_batches: how many of them each rank goes through in one optimizer step.

        Raises:
            ConfigError: the DeepSpeed file is missing or cannot be used.
        """
        deepspeed = import_deepspeed()
        settings = read_deepspeed_json(deepspeed_path)
        if zero_stage(settings) == 3:
            raise ConfigError(
                f"deepspeed: {deepspeed_path}: the warm-up needs a ZeRO stage below 3"
            )
        settings |= {
            "train_micro_batch_size_per_gpu": micro_batch_size,
            "gradient_accumulation_steps": micro_batches,
            "gradient_clipping": MAX_GRADIENT_NORM,
            "bf16": {"enabled": next(model.parameters()).dtype == torch.bfloat16},
            "steps_per_print": 2**31 - 1,
        }
        adamw = torch.optim.AdamW(model.parameters(), betas=BETAS, weight_decay=WEIGHT_DECAY)
        self._engine, self.optimizer, *_ = deepspeed.initialize(
            model=model, optimizer=adamw, config=settings, dist_init_required=False
        )
        self.module = self._engine.module
        self.micro_batches = micro_batches

    def save(self, folder: Path, name: str) -> None:
        """Weights and optimizer as DeepSpeed's checkpoint folder/name (all ranks)."""
        with comm.collective("saving"):
            self._engine.save_checkpoint(str(folder), tag=name)

    def load(self, folder: Path, name: str) -> None:
        """Take up what was saved there, on as many ranks (all ranks)."""
        with comm.collective("resume"):
            self._engine.load_checkpoint(str(folder), tag=name)

    def step(
        self,
        micro_batches: Sequence[Batch],
        loss: Callable[[nn.Module, Batch], Tensor],
        learning_rate: float,
    ) -> float:
        """One optimizer step on the sum of the losses of all micro-batches of all ranks.

        Every rank must bring `self.micro_batches` of them. Returns that sum.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        total = 0.0
        for batch in micro_batches:
            value = loss(self._engine, batch)
            # The engine averages over ranks and micro-batches; this loss is a sum over both.
            self._engine.backward(value * (comm.world_size() * self.micro_batches))
            self._engine.step()
            total += value.item()
        return comm.sum_over_ranks(total)[0]
