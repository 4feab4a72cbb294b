"""The work of a step and what its ranks exchange, counted phase by phase: those of the metrics
`time/*`, and `log` for what is in none of them.

Of the busiest rank; every sample has a gradient, and all responses have the length that is asked
for. tests/distributed/test_cost.py counts the same exchanges in a step of two ranks and of four.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from peft import PeftModel

from capo_ds.architecture import text_config
from capo_ds.config import Config
from capo_ds.distributed.deepspeed_json import read_deepspeed_json, zero_stage
from capo_ds.distributed.gram import BAND_ROWS, BUFFER_ENTRIES
from capo_ds.distributed.zero import EXCHANGED, parameter_count
from capo_ds.memory import cache_heads

# A note is an object that every rank gathers: a collective for its size, another for its bytes.
NOTES = {"rollout": 2, "sync": 2, "score": 2, "log_probs": 1, "log": 1}  # of a step
NOTES_OF_UPDATE = {"backward": 1, "solve": 1, "reconstruct": 1, "optimizer": 1}
JUDGED, TAKEN, SOLVED = 330, 14, 75  # bytes a sample in: verdicts, the roster, the answer
MEASURES = 9000  # bytes of a rank's metrics of a step


class Exchange(NamedTuple):
    """A collective of `Collectives.seconds`, `times` over, of `count` bytes each time."""

    kind: str
    count: float
    times: int = 1


@dataclass
class Phase:
    """What a rank does in a phase: amounts by the rate that they go by (`Rates`), and exchanges."""

    work: dict[str, float] = field(default_factory=dict)
    exchanges: list[Exchange] = field(default_factory=list)

    def note(self, ranks: int, count: float = 0, times: int = 1) -> None:
        """count: bytes of all ranks together."""
        self.exchanges.append(Exchange("all_gather", 8 * ranks, times))
        self.exchanges.append(Exchange("all_gather", max(count, 4 * ranks), times))


@dataclass(frozen=True)
class Shape:
    """A model with LoRA factors.

    factors: (out, in) of each. dense: weights that a token is multiplied with below the output
    layer. stored: bytes of the base weights, in so many tensors. cache: bytes that a token keeps.
    """

    factors: list[tuple[int, int]]
    dense: int
    stored: int
    tensors: int
    layers: int
    width: int
    vocabulary: int
    cache: int

    @property
    def trained(self) -> int:
        return sum(out * into for out, into in self.factors)

    @staticmethod
    def of(policy: PeftModel, dtype: str) -> Shape:
        """Whatever ZeRO has made of it; of experts all are counted (as an upper bound)."""
        base = [p for p in policy.parameters() if not p.requires_grad]
        factors = [(p.shape[0], p.shape[1]) for p in policy.parameters() if p.requires_grad]
        architecture = text_config(policy.config)
        heads, size = cache_heads(architecture)
        number = getattr(torch, dtype).itemsize
        width, vocabulary = architecture.hidden_size, architecture.vocab_size
        whole = sum(map(parameter_count, base))
        tied = policy.get_input_embeddings().weight is policy.get_output_embeddings().weight
        return Shape(
            factors,
            whole - width * vocabulary * (1 if tied else 2),
            sum(parameter_count(p) * p.element_size() for p in base),
            len(base),
            architecture.num_hidden_layers,
            width,
            vocabulary,
            2 * architecture.num_hidden_layers * heads * size * number,
        )

    def forward(self, samples: int, prompt: int, response: int) -> float:
        """Floating-point operations of a forward pass, scores of attention and logits included."""
        tokens = samples * (prompt + response)
        scores = 2 * self.width * self.layers * samples * (prompt + response) ** 2
        return 2 * (self.dense + self.trained) * tokens + scores + self._logits(samples * response)

    def backward(self, samples: int, prompt: int, response: int, twice: bool) -> float:
        """Of a forward and a backward pass, in which base weights get no gradients; twice: forward
        again, by checkpointing."""
        tokens = samples * (prompt + response)
        forward = self.forward(samples, prompt, response)
        scores = 2 * self.width * self.layers * samples * (prompt + response) ** 2
        factors = 2 * self.trained * tokens
        logits = self._logits(samples * response)
        again = forward - logits if twice else 0.0
        return 2 * forward + again + scores + factors

    def _logits(self, tokens: int) -> float:
        return 2 * self.width * self.vocabulary * tokens


@dataclass(frozen=True)
class Step:
    """A step of a recipe on a number of ranks. response: tokens of each response."""

    config: Config
    shape: Shape
    ranks: int
    response: int

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

    @property
    def mine(self) -> float:
        """Of a rank in an update, on average: mini-batches are drawn at random."""
        return self.sampled / self.config.objective.minibatches

    @property
    def updates(self) -> int:
        return self.config.objective.epochs * self.config.objective.minibatches

    def phases(self) -> dict[str, Phase]:
        """In the order of the step, over all its updates."""
        found = {"rollout": self._rollout(), "sync": Phase(), "score": self._score()}
        found |= {"log_probs": self._log_probs(), "backward": self._backward()}
        if self.config.uses_per_sample_gradients:
            found |= {"gram": self._gram(), "solve": self._solve()}
            found["reconstruct"] = self._reconstruct()
        found |= {"optimizer": self._optimizer(), "log": self._log()}
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
        cache = batch * (rollout.max_prompt_tokens + self.response / 2) * self.shape.cache
        read = self.response * (self.shape.stored + 4 * self.shape.trained + cache) * batches
        return Phase({"sampling": read}, self._gathered(1))

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
        size = self.config.rollout.max_prompt_tokens, self.response
        flops = self.shape.backward(1, *size, self.config.model.gradient_checkpointing) * self.mine
        gathers = self._gathered(2 * self._micro_batches(self.mine) * self.updates)
        phase = Phase({"passes": flops * self.updates}, gathers)
        phase.exchanges.append(Exchange("all_reduce", 16, self.updates))
        if self.config.uses_per_sample_gradients:
            phase.note(self.ranks, TAKEN * self.samples, self.updates)
            if self.config.gradients.store == "recompute":
                phase.work |= self._sketching()
        return phase

    def _gram(self) -> Phase:
        """Columns by all-to-all, products of a rank's share of them, partial sums to rank 0."""
        settings, columns = self.config.gradients, [out * into for out, into in self.shape.factors]
        number = getattr(torch, settings.dtype).itemsize
        if settings.sketch != "none":
            columns, number = [settings.sketch_dim], 4
        width = max(self.ranks, BUFFER_ENTRIES // self.samples * self.ranks)
        times = sum(-(-count // width) for count in columns)
        sent = self.mine * sum(columns) * number
        exchanges = [Exchange("all_to_all", sent / times, times * self.updates)]
        for first in range(0, self.samples, BAND_ROWS):
            rows = min(BAND_ROWS, self.samples - first)
            entries = rows * (self.samples - first) - rows * (rows - 1) // 2
            blocks = 1 if settings.sketch != "none" else self._blocks
            exchanges.append(Exchange("reduce", 8 * entries, self.updates * blocks))
        phase = Phase({}, exchanges)
        phase.work["products"] = 2 * self.samples**2 * sum(columns) / self.ranks * self.updates
        if settings.store != "recompute":
            phase.work |= self._sketching()
        return phase

    def _sketching(self) -> dict[str, float]:
        """Bytes of gradients that are sketched: with `recompute` as they come, else when asked."""
        if self.config.gradients.sketch == "none":
            return {}
        return {"sketch": 4 * self.mine * self.updates * self.shape.trained}

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
        settings, trained = self.config.gradients, self.shape.trained
        number = getattr(torch, settings.dtype).itemsize
        sums = 1 if settings.sketch == "none" else 2  # sketched, of g_0 and of dg
        phase = Phase({"memory": sums * self.mine * trained * number * self.updates})
        if settings.store == "recompute":
            size = self.config.rollout.max_prompt_tokens, self.response
            twice = self.config.model.gradient_checkpointing
            again = self.shape.backward(1, *size, twice) * self.mine
            phase.work = {"passes": sums * again * self.updates}
        if sums == 2:
            times = len(self.shape.factors)
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
        """The ranks' metrics, their memory, and whether one was interrupted; not timed by any."""
        phase = Phase(exchanges=[Exchange("all_reduce", 8, 2)])
        phase.note(self.ranks, MEASURES * self.ranks)
        return phase

    def _forward(self, samples: float) -> float:
        return samples * self.shape.forward(1, self.config.rollout.max_prompt_tokens, self.response)

    def _micro_batches(self, samples: float) -> int:
        train, tokens = self.config.train, self.config.rollout.max_prompt_tokens + self.response
        rows = train.micro_batch_size
        if train.micro_batch_tokens is not None:
            rows = max(1, train.micro_batch_tokens // tokens)
        return math.ceil(samples / rows)

    def _gathered(self, times: int) -> list[Exchange]:
        """All weights, gathered tensor by tensor at ZeRO 3."""
        if zero_stage(read_deepspeed_json(self.config.deepspeed)) < 3:
            return []
        tensors = self.shape.tensors
        return [Exchange("all_gather", self.shape.stored / tensors, times * tensors)]
