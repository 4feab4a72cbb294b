"""The DeepSpeed engine, fed with a gradient made outside it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn

from capo_ds.config import Config, ConfigError
from capo_ds.distributed import comm
from capo_ds.distributed.deepspeed_json import deepspeed_settings, zero_stage
from capo_ds.distributed.schedule import make_schedule
from capo_ds.distributed.zero import MOMENTS, Writers, Zero, import_deepspeed, rounds
from capo_ds.peft_internals import without_card
from capo_ds.telemetry import tables


class CapoEngine:
    """`deepspeed.initialize` on the policy; `apply` replaces its backward pass.

    The forward pass goes through `module`, not through the engine, whose own backward hooks
    would start a reduction of gradients that are never made.

    card: the README.md of adapters that are saved from now on.
    parameters: the LoRA factors; at ZeRO 3 empty outside `gathered`, so their `shapes` are kept.
    """

    def __init__(self, policy: PeftModel, config: Config, optimizer_steps: int, monitor_dir: Path):
        deepspeed = import_deepspeed()
        self.parameters = [p for p in policy.parameters() if p.requires_grad]
        self.names = [n for n, p in policy.named_parameters() if p.requires_grad]
        self.shapes = [(factor.shape[0], factor.shape[1]) for factor in self.parameters]
        settings = deepspeed_settings(config, monitor_dir, sum(map(math.prod, self.shapes)))
        with tables.named(config.train.report_to, monitor_dir):
            self._engine, *_ = deepspeed.initialize(
                model=policy,
                model_parameters=self.parameters,
                config=settings,
                lr_scheduler=make_schedule(config.optimizer, optimizer_steps),
                dist_init_required=False,
            )
        self._zero = Zero(self._engine, zero_stage(settings))
        self.module: PeftModel = self._engine.module
        self.module.eval()  # and so it stays: see `load_policy`
        self.writers = Writers(self._engine)
        self.card = ""

    @property
    def lockstep(self) -> bool:
        """Whether forward and backward passes are collective: ZeRO 3 gathers weights in them, so
        all ranks must make equally many."""
        return self._zero.stage == 3

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Inside, every rank holds all weights, and forward passes need no other rank.

        Entered and left by all ranks together; costs one gathering of the weights at ZeRO 3 and
        nothing below. Weights must not be changed inside.
        """
        if not self.lockstep:
            yield
            return
        with self.whole(list(self.module.parameters())), self._zero.without_hooks():
            yield

    @property
    def bytes_sent(self) -> int:
        """What a rank sends in one optimizer step, by the formula of rings: the gradient reduced
        and, above ZeRO 0, the new factors handed round, in float32.

        ZeRO 3's gathering of weights in the passes comes on top.
        """
        ranks = comm.world_size()
        trained = sum(map(math.prod, self.shapes))
        return rounds(self._zero.stage) * 4 * trained * (ranks - 1) // ranks

    def zeros(self) -> list[Tensor]:
        """A gradient of zeros, in the parameters' shapes."""
        return [torch.zeros(shape, device=comm.device()) for shape in self.shapes]

    def apply(self, partial_gradient: list[Tensor]) -> float:
        """One optimizer step along the *ascent* direction summed over ranks; returns its norm.

        partial_gradient: this rank's part of g~, in the parameters' shapes; the ranks' parts add
        up to g~. It enters as the gradient of the surrogate -W sum_p <p, part_p>: the engine
        averages over its W ranks, partitions, clips and steps as it does for any loss.
        """
        with comm.collective("optimizer step"):
            with self.whole(self.parameters):
                surrogate = -comm.world_size() * sum(
                    (parameter.float() * part).sum()
                    for parameter, part in zip(self.parameters, partial_gradient, strict=True)
                )
                self._engine.backward(surrogate)
            norm = None
            if self._zero.stage == 0:  # the engine tells no norm; the reduced gradient is at hand
                norm = torch.nn.utils.get_total_norm(
                    [p.grad for p in self.parameters if p.grad is not None]
                )
            self._engine.step()
        return float(self._engine.get_global_grad_norm() if norm is None else norm)

    def whole(
        self, parameters: list[nn.Parameter], modifier_rank: int | None = None
    ) -> AbstractContextManager:
        """Inside, these parameters are whole; does nothing below ZeRO 3.

        modifier_rank: whose changes to them are kept.
        """
        return self._zero.whole(parameters, modifier_rank)

    def end_of_pass(self) -> None:
        """To be called after every backward pass outside the engine."""
        self._zero.end_of_pass()

    @property
    def learning_rate(self) -> float:
        """Of the next optimizer step."""
        return self._engine.get_lr()[0]

    def save_adapter(self, folder: Path) -> None:
        """The LoRA factors in PEFT format, with the card (all ranks)."""
        with self.whole(self.parameters):
            comm.on_main(
                "saving the adapter", lambda: _save_adapter(self.module, folder, self.card)
            )

    def state(self) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Factors and moments by name, whole and on the CPU, and the optimizer's place in the run
        (JSON); the same at any ZeRO stage, on every rank (all ranks). Before the first step, when
        optimizers have no state yet, the moments are zeros."""
        factors = {}
        with self.whole(self.parameters):
            for name, parameter in self._named():
                factors[name] = parameter.detach().cpu().clone()
        begun = self._zero.begun
        for (name, parameter), shape in zip(self._named(), self.shapes, strict=True):
            for moment in MOMENTS:
                value = self._zero.moment(parameter, moment) if begun else torch.zeros(shape)
                factors[f"{name}.{moment}"] = value.cpu().clone()
        return factors, self._zero.place

    def restore(self, factors: dict[str, Tensor], place: dict[str, int]) -> None:
        """Take up what `state` gave, from rank 0 (all ranks); other ranks' `factors` are not read.

        Raises:
            ConfigError: on all ranks, if the factors are of another adapter.
        """
        with comm.together("resume"):
            if comm.is_main():
                self._check_factors(factors)
        self.apply(self.zeros())  # makes every stage set up its optimizer's state
        for (name, parameter), shape in zip(self._named(), self.shapes, strict=True):
            value = self._from_main(factors.get(name), shape)
            with self.whole([parameter], modifier_rank=0):
                parameter.data.copy_(value)
            self._zero.set_copy(parameter, value)
            for moment in MOMENTS:
                value = self._from_main(factors.get(f"{name}.{moment}"), shape)
                self._zero.set_moment(parameter, moment, value)
        self._zero.go_on_from(place)

    def _check_factors(self, factors: dict[str, Tensor]) -> None:
        for (name, _), shape in zip(self._named(), self.shapes, strict=True):
            if name not in factors or factors[name].shape != shape:
                raise ConfigError(
                    f"train.resume: the checkpoint holds no factor {name} of shape {shape}; choose "
                    "another train.output_dir"
                )

    def _from_main(self, value: Tensor | None, shape: Sequence[int]) -> Tensor:
        if value is None or not comm.is_main():
            value = torch.empty(shape)
        value = value.to(comm.device())
        comm.broadcast_tensor(value)
        return value

    def _named(self) -> list[tuple[str, nn.Parameter]]:
        return [(n, p) for n, p in self.module.named_parameters() if p.requires_grad]


def _save_adapter(policy: PeftModel, folder: Path, card: str) -> None:
    with without_card(policy):
        policy.save_pretrained(str(folder), selected_adapters=["default"])
    if card:
        (folder / "README.md").write_text(card, encoding="utf-8")
