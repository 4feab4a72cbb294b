"""The work of a step and what its ranks exchange, counted phase by phase: those of the metrics
`time/*`, and `meet` (between those of an update) and `log` for what is in none of them.

Of the busiest rank; every sample has a gradient, and all responses have the length that is asked
for, so that the bytes are those of a step at most. tests/distributed/test_cost.py counts the same
exchanges in a step of two ranks and of four.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from itertools import repeat
from typing import NamedTuple

import numpy as np
import torch

from capo_ds.config import Config
from capo_ds.cost.shape import Shape
from capo_ds.distributed.deepspeed_json import read_deepspeed_json, zero_stage
from capo_ds.distributed.gram import BAND_ROWS, exchange_count
from capo_ds.distributed.zero import EXCHANGED, ROUNDS
from capo_ds.gradients.sketch import DEFAULT_DIM
from capo_ds.gradients.store import held_samples
from capo_ds.learning.mini_batches import mini_batches
from capo_ds.memory import sketched_together
from capo_ds.rollout.choose import shares_policy

# A note is an object that every rank gathers: a collective for its size, another for its bytes.
NOTES = {"rollout": 2, "sync": 2, "score": 2, "log_probs": 1, "log": 1}  # of a step
NOTES_OF_UPDATE = {"backward": 1, "solve": 1, "reconstruct": 1, "optimizer": 1}
JUDGED, TAKEN, SOLVED = 330, 14, 75  # bytes a sample in: verdicts, the roster, the answer
MEASURES = 9000  # bytes of a rank's metrics of a step
STEPS = 8  # whose mini-batches are looked at


class Exchange(NamedTuple):
    """A collective of `Collectives.seconds`, `times` over, of `count` bytes each time."""

    kind: str
    count: float
    times: int = 1

    def sent(self, ranks: int) -> float:
        """Bytes that the busiest rank sends: in a reduction one that is not 0, in a broadcast one
        that hands on."""
        if ranks == 1:
            return 0.0
        share = (ranks - 1) / ranks * ROUNDS.get(self.kind, 1)
        return self.times * self.count * (1 if self.kind in ("reduce", "broadcast") else share)


@dataclass
class Phase:
    """What a rank does in a phase: amounts by the rate that they go by (`Rates`), and exchanges."""

    work: dict[str, float] = field(default_factory=dict)
    exchanges: list[Exchange] = field(default_factory=list)

    def note(self, ranks: int, count: float = 0, times: int = 1) -> None:
        """count: bytes of all ranks together."""
        self.exchanges.append(Exchange("all_gather", 8 * ranks, times))
        self.exchanges.append(Exchange("all_gather", max(count, 4 * ranks), times))

    def works(self, work: dict[str, float]) -> None:
        """More of it."""
        for name, amount in work.items():
            self.work[name] = self.work.get(name, 0.0) + amount

    def sent(self, ranks: int) -> float:
        """Bytes, by the busiest rank."""
        return sum(exchange.sent(ranks) for exchange in self.exchanges)


@dataclass(frozen=True)
class Step:
    """A step of a recipe on a number of ranks. response: tokens of each response; asked: of each
    prompt, 0: as many as may be."""

    config: Config
    shape: Shape
    ranks: int
    response: int
    asked: int = 0

    @property
    def prompt(self) -> int:
        """Tokens of a prompt."""
        return self.asked or self.config.rollout.max_prompt_tokens

    @property
    def samples(self) -> int:
        """N, of an update."""
        rollout, objective = self.config.rollout, self.config.objective
        return -(-rollout.prompts_per_step // objective.minibatches) * rollout.group_size

    @property
    def sampled(self) -> int:
        """Of the busiest rank in the step."""
        rollout = self.config.rollout
        return -(-rollout.prompts_per_step // self.ranks) * rollout.group_size

    @cached_property
    def mine(self) -> float:
        """Of the busiest rank of an update, in the mean over updates: mini-batches are drawn at
        random from the prompts of all ranks."""
        if self.config.objective.minibatches == 1:
            return self.sampled
        parts = [part for step in range(STEPS) for part in mini_batches(self.config, step)]
        most = [np.bincount(part % self.ranks).max() for part in parts if len(part)]
        return float(np.mean(most)) * self.config.rollout.group_size

    @property
    def updates(self) -> int:
        return self.config.objective.epochs * self.config.objective.minibatches

    def phases(self) -> dict[str, Phase]:
        """In the order of the step, over all its updates."""
        found = {"rollout": self._rollout(), "sync": self._sync(), "score": self._score()}
        found |= {"log_probs": self._log_probs(), "backward": self._backward()}
        if self.config.uses_per_sample_gradients:
            found |= {"gram": self._gram(), "solve": self._solve()}
            found["reconstruct"] = self._reconstruct()
        found |= {"optimizer": self._optimizer(), "meet": self._meet(), "log": self._log()}
        for name, times in NOTES.items():
            found[name].note(self.ranks, times=times)
        for name, times in NOTES_OF_UPDATE.items():
            if name in found:
                found[name].note(self.ranks, times=times * self.updates)
        return found

    def _rollout(self) -> Phase:
        """The longest response takes a reading of all weights a token, and of the batch's cache."""
        rollout = self.config.rollout
        batch = min(self.sampled, rollout.batch_size)
        batches = -(-self.sampled // batch)
        cache = batch * (self.prompt + self.response / 2) * self.shape.cache
        read = self.response * (self.shape.stored + 4 * self.shape.trained + cache) * batches
        return Phase({"sampling": read}, self._gathered(1) if self._samples_itself else [])

    def _sync(self) -> Phase:
        """A sampler with weights of its own is sent the factors."""
        if self._samples_itself or not self._is_partitioned:
            return Phase()
        times = len(self.shape.factors)
        return Phase({}, [Exchange("all_gather", 4 * self.shape.trained / times, times)])

    @cached_property
    def _samples_itself(self) -> bool:
        return shares_policy(self.config)

    def _score(self) -> Phase:
        phase = Phase()
        rollout = self.config.rollout
        phase.note(self.ranks, JUDGED * rollout.prompts_per_step * rollout.group_size)
        return phase

    def _log_probs(self) -> Phase:
        """The reference's for the KL term, and the behaviour policy's where updates are several."""
        passes = int(self.config.objective.kl_weight > 0) + int(not self.config.on_policy)
        flops = passes * self._forward(self.sampled)
        return Phase({"passes": flops}, self._gathered(passes * self._micro_batches(self.sampled)))

    def _backward(self) -> Phase:
        size = self.prompt, self.response
        flops = self.shape.backward(1, *size, self.config.model.gradient_checkpointing) * self.mine
        gathers = self._gathered(2 * self._micro_batches(self.mine) * self.updates)
        kind = "per_sample" if self.config.uses_per_sample_gradients else "passes"
        phase = Phase({kind: flops * self.updates}, gathers)
        if self._keeps_sketches:  # and the sum of all gradients
            phase.works({kind: self.updates * self.mine * self.shape.gradients(*size)})
            phase.works(self._sketching()[0])
        return phase

    def _meet(self) -> Phase:
        """How many samples there are, and which have a gradient."""
        phase = Phase(exchanges=[Exchange("all_reduce", 16, self.updates)])
        if self.config.uses_per_sample_gradients:
            phase.note(self.ranks, TAKEN * self.samples, self.updates)
        return phase

    def _gram(self) -> Phase:
        """Columns by all-to-all, products of a rank's share of them, partial sums to rank 0."""
        settings, columns = self.config.gradients, self.shape.widths
        number = getattr(torch, settings.dtype).itemsize
        if settings.sketch != "none":
            columns, number = [settings.sketch_dim], 4
        blocks = 1 if settings.sketch != "none" else self._blocks
        numbers = [index * blocks // len(columns) for index in range(len(columns))]
        times = exchange_count(columns, numbers, self.samples, self.ranks)
        sent = self.mine * sum(columns) * number
        exchanges = [Exchange("all_to_all", sent / times, times * self.updates)]
        for first in range(0, self.samples, BAND_ROWS):
            rows = min(BAND_ROWS, self.samples - first)
            entries = rows * (self.samples - first) - rows * (rows - 1) // 2
            exchanges.append(Exchange("reduce", 8 * entries, self.updates * blocks))
        phase = Phase({}, exchanges)
        phase.work["products"] = 2 * self.samples**2 * sum(columns) / self.ranks * self.updates
        phase.works(self._sketching()[1])
        return phase

    def _sketching(self) -> tuple[dict[str, float], dict[str, float]]:
        """What is sketched in the phases `backward` and `gram`: bytes of gradients, and of one
        gradient as often as the map is made (see `Sketching`).

        Stores of whole gradients do it for all samples together, when asked; `recompute` as
        gradients come, and where they wait for each other (see `SketchStore`) the last when asked.
        """
        gradients = self.config.gradients
        if gradients.sketch == "none":
            return {}, {}
        together = sketched_together(self.config)
        each = 4 * self.shape.trained * self.updates
        if together:  # k multiplications a number
            each *= gradients.sketch_dim / DEFAULT_DIM
        samples, rows = self.mine, self.rows
        groups, last = 1, samples
        if self._keeps_sketches:
            held = held_samples(math.ceil(samples), self.shape.trained) if together else 0
            some = held // min(rows, samples) * min(rows, samples)  # of whole micro-batches
            groups = math.ceil(samples / (some or rows))
            last = samples - (groups - 1) * some if some else 0.0
        at_last = min(last, 1)  # whether anything waits
        before = {"applied": each * (samples - last), "drawn": each * (groups - at_last)}
        return before, {"applied": each * last, "drawn": each * at_last}

    @property
    def _keeps_sketches(self) -> bool:
        """And no gradients."""
        found = self.config.gradients
        whole = found.store != "recompute" or found.sketch == "none"
        return self.config.uses_per_sample_gradients and not whole

    @property
    def _blocks(self) -> int:
        """Of the program; as if each layer had as many factors."""
        blocks = {"whole": 1, "layer": self.shape.layers}
        return blocks.get(self.config.program.blocks, len(self.shape.factors))

    def _solve(self) -> Phase:
        """`solve` counts solves; what one takes follows from N."""
        sizes = Exchange("broadcast", 8, self.updates)
        answer = Exchange("broadcast", SOLVED * self.samples, self.updates)
        return Phase({"solve": self.updates}, [sizes, answer])

    def _reconstruct(self) -> Phase:
        """A pass that is made again leaves out samples of weight 0; it is counted with all."""
        settings, trained = self.config.gradients, self.shape.trained
        number = getattr(torch, settings.dtype).itemsize
        sums = 1 if settings.sketch == "none" else 2  # sketched, of g_0 and of dg
        phase = Phase({"memory": sums * self.mine * trained * number * self.updates})
        if self._keeps_sketches:
            size = self.prompt, self.response
            twice = self.config.model.gradient_checkpointing
            again = self.shape.backward(1, *size, twice) * self.mine
            phase.work = {"passes": again * self.updates}  # of dg; g_0 is the sum that was kept
        if sums == 2:
            columns, rows = self.shape.widths, 2 * self.ranks  # two a rank
            times = exchange_count(columns, repeat(0), rows, self.ranks)
            exchanged = Exchange("all_to_all", 8 * trained / times, times * self.updates)
            phase.exchanges += [exchanged, Exchange("all_reduce", 16, self.updates)]
        return phase

    def _optimizer(self) -> Phase:
        trained = 4 * self.shape.trained
        kinds = EXCHANGED[zero_stage(read_deepspeed_json(self.config.deepspeed))]
        exchanges = [Exchange(kind, trained, self.updates) for kind in kinds]
        exchanges.append(Exchange("all_reduce", 8, self.updates))  # the gradient's norm
        return Phase({"optimizer": self.updates * len(self.shape.factors)}, exchanges)

    def _log(self) -> Phase:
        """The ranks' metrics, their memory, and whether one was interrupted."""
        phase = Phase(exchanges=[Exchange("all_reduce", 8, 2)])
        phase.note(self.ranks, MEASURES * self.ranks)
        return phase

    def _forward(self, samples: float) -> float:
        return samples * self.shape.forward(1, self.prompt, self.response)

    @property
    def rows(self) -> int:
        """Of a micro-batch."""
        train, tokens = self.config.train, self.prompt + self.response
        if train.micro_batch_tokens is None:
            return train.micro_batch_size
        return max(1, train.micro_batch_tokens // tokens)

    def _micro_batches(self, samples: float) -> int:
        return math.ceil(samples / self.rows)

    @property
    def _is_partitioned(self) -> bool:
        return zero_stage(read_deepspeed_json(self.config.deepspeed)) == 3

    def _gathered(self, times: int) -> list[Exchange]:
        """All weights, gathered tensor by tensor at ZeRO 3."""
        if not self._is_partitioned:
            return []
        tensors = self.shape.tensors
        return [Exchange("all_gather", self.shape.stored / tensors, times * tensors)]


def step_of(
    config: Config,
    shape: Shape,
    store: str,
    ranks: int,
    prompt: int | None = None,
    response: int | None = None,
) -> Step:
    """The step of a run that keeps its gradients in this store. prompt, response: None, as long as
    may be."""
    gradients = config.gradients.model_copy(update={"store": store})
    chosen = config.model_copy(update={"gradients": gradients})
    return Step(chosen, shape, ranks, response or config.rollout.max_new_tokens, prompt or 0)
