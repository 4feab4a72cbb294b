"""One shape of a model on one GPU: ceilings, log-probabilities, updates, rollouts (see gpu.py)."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from step import PLAIN, VARIANTS, plain_update
from step_shapes import SIZES, Size, clock, make_model, settings
from torch import Tensor

from capo_ds.capacity import used_memory
from capo_ds.config import Config
from capo_ds.distributed import comm
from capo_ds.distributed.engine import CapoEngine
from capo_ds.learner import Learner
from capo_ds.memory import plan_on_all_ranks
from capo_ds.models import load_policy
from capo_ds.rollout.base import Draw
from capo_ds.rollout.hf import HuggingFaceSampler
from capo_ds.rollout.rollout import Rollout
from capo_ds.telemetry.metrics import PhaseTimer

GROUP, PAD, REPEATS = 8, 0, 2
CEILING_SIZES = {"cuda": (8192, 1 << 29), "cpu": (512, 1 << 24)}  # of a square matrix; bytes copied
SHAPES = {
    "tiny": Size(64, 128, 2, 4, 2, 512, 4, 16, 8, 16, 4),
    "0.5b": Size(896, 4864, 24, 14, 2, 151936, 64, 128, 128, 384, 16, "bfloat16"),
    "1.5b": replace(SIZES["1.5b"], samples=128),
}
ORDER = (  # of VARIANTS, what matters most first
    "GRPO, mean",
    "CAPO, exact",
    "CAPO, exact, bf16 store",
    "CAPO, sparse",
    "CAPO, rademacher",
    "CAPO, exact, host store",
    "CAPO, sparse, recompute",
    "CAPO, outer",
)


class Record:
    """The results, in a file that is written anew after each.

    deadline: of `time.monotonic`, after which nothing more is begun.
    """

    def __init__(self, path: Path, deadline: float):
        self.path, self.deadline = path, deadline
        self.found: dict[str, Any] = {}

    def measure(self, name: str, function: Callable[[], Any]) -> Any:
        """What the function returns, under that name; or why there is nothing."""
        if time.monotonic() > self.deadline:
            value: Any = {"skipped": "no time left"}
        else:
            try:
                value = function()
            except Exception as error:  # told at the end, by the exit status too
                traceback.print_exc()
                value = {"failed": f"{type(error).__name__}: {str(error)[:300]}"}
        self.found[name] = value
        self.path.write_text(json.dumps(self.found, indent=1) + "\n")
        return value


# ---------------------------------------------------------------- ceilings


def seconds_of(run: Callable[[], object], repeats: int = REPEATS) -> float:
    """Of one call, after an uncounted one."""
    run()
    start = clock()
    for _ in range(repeats):
        run()
    return max(clock() - start, 1e-9) / repeats


def ceilings() -> dict[str, float]:
    """FLOP/s of matrix products; bytes a second, read and written, of copies."""
    device, large = comm.device(), comm.device().type == "cuda"
    side, count = CEILING_SIZES[device.type]
    wide = torch.randn(side, side, device=device)  # not ones: a card is faster with constants
    square = wide.bfloat16()
    here = torch.empty(count, dtype=torch.uint8, device=device)
    there, host = torch.empty_like(here), torch.empty(count, dtype=torch.uint8, pin_memory=large)
    products, copies = 2 * side**3, float(count)
    return {
        "bf16_flops": products / seconds_of(lambda: square @ square, 10),
        "fp32_flops": products / seconds_of(lambda: wide @ wide, 10),
        "device_bytes": 2 * copies / seconds_of(lambda: there.copy_(here), 10),
        "to_host_bytes": copies / seconds_of(lambda: host.copy_(here, non_blocking=True), 10),
        "from_host_bytes": copies / seconds_of(lambda: here.copy_(host, non_blocking=True), 10),
    }


# ---------------------------------------------------------------- responses and engine


def responses(size: Size) -> Rollout:
    """Of uneven lengths, an eighth to all of the room, the G to a prompt side by side."""
    generator = torch.Generator().manual_seed(1)

    def draw(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    n, t, p = size.samples, size.response, size.prompt
    mask = torch.arange(t) < draw(t // 8, t + 1, n)[:, None]
    prompt_mask = (
        torch.arange(p) >= p - draw(p // 2, p + 1, n // GROUP)[:, None]
    ).repeat_interleave(GROUP, 0)
    prompts = draw(3, size.vocabulary, n // GROUP, p).repeat_interleave(GROUP, 0) * prompt_mask
    rollout = Rollout(
        prompt_ids=prompts,
        prompt_mask=prompt_mask,
        completion_ids=draw(3, size.vocabulary, n, t) * mask,
        completion_mask=mask,
        log_probs=torch.zeros(n, t),
        entropy=torch.zeros(n, t),
        truncated=mask[:, -1],
    )
    return Rollout(**{name: value.to(comm.device()) for name, value in vars(rollout).items()})


def configured(size: Size, model: Path, variant: dict, checkpointing: bool) -> Config:
    config = settings(size, model, variant)
    of_model = config.model.model_copy(update={"gradient_checkpointing": checkpointing})
    return config.model_copy(update={"model": of_model})


def make_engine(size: Size, model: Path) -> tuple[CapoEngine, bool]:
    """And whether with gradient checkpointing: where activations do not fit beside the store."""
    checkpointing = False
    policy = load_policy(configured(size, model, {}, False).model, 0, comm.device())
    plan = plan_on_all_ranks(configured(size, model, {}, False), policy)
    if not plan.fits("device"):
        del policy
        checkpointing = True
        policy = load_policy(configured(size, model, {}, True).model, 0, comm.device())
    for parameter in policy.parameters():
        if parameter.requires_grad:  # B = 0 would leave the gradients of A at 0
            torch.nn.init.normal_(parameter, std=0.02)
    config = configured(size, model, {}, checkpointing)
    return CapoEngine(policy, config, 100, model), checkpointing


# ---------------------------------------------------------------- the work of a pass


def pass_flops(size: Size, rollout: Rollout, trained: int, checkpointing: bool) -> float:
    """Floating-point operations of one forward and backward pass over all samples; the base weights
    get no gradients."""
    tokens, counted = float(rollout.widths.sum()), float(rollout.lengths.sum())
    head = size.width // size.heads
    attention = 2 * size.width * (size.width + size.kv_heads * head)
    layers = size.layers * (attention + 3 * size.width * size.mlp_width)
    scores = 2 * size.width * size.layers * float(rollout.widths.double().square().sum())
    forward = 2 * layers * tokens + scores + 2 * trained * tokens
    logits = 2 * size.width * size.vocabulary * counted
    return forward * (3 if checkpointing else 2) + scores + 2 * trained * tokens + 2 * logits


# ---------------------------------------------------------------- one shape


class Bench:
    """The measurements of one shape."""

    def __init__(self, size: Size, folder: Path):
        self.size, self.folder = size, folder
        model = make_model(size, folder, tie_word_embeddings=True)
        self.engine, self.checkpointing = make_engine(size, model)
        self.rollout = responses(size)
        generator = torch.Generator().manual_seed(2)
        self.advantages = torch.randn(len(self.rollout), generator=generator).to(comm.device())
        self.trained = sum(o * i for o, i in self.engine.shapes)

    def update(self, name: str) -> dict[str, float]:
        """One variant: seconds of an update and of its phases, rates, memory."""
        variant = VARIANTS["GRPO, mean" if name == PLAIN else name]
        config = configured(self.size, self.folder, variant, self.checkpointing)
        plan = plan_on_all_ranks(config, self.engine.module)
        store = config.gradients.store
        with self.learner(config, store) as learner:
            numbers = torch.arange(len(self.rollout), device=comm.device())
            batch = learner.prepare(self.rollout, self.advantages, numbers)

            def run() -> object:
                if name == PLAIN:
                    return plain_update(learner, batch)
                return learner.update(batch, number=0)

            run()
            learner.timer.take()
            used_memory(comm.device())  # from here on its peak counts
            start = clock()
            for _ in range(REPEATS):
                run()
            found = {"seconds": (clock() - start) / REPEATS}
            phases = learner.timer.take()
        found |= {phase: total / REPEATS for phase, total in phases.items()}
        found["used_bytes"] = used_memory(comm.device())[1]
        kept = plan.stores[store].device if plan.stores else 0
        found["planned_bytes"] = plan.needed + kept
        flops = pass_flops(self.size, self.rollout, self.trained, self.checkpointing)
        found["backward_flops"] = flops / found.get("time/backward", found["seconds"])
        if "time/gram" in found and config.gradients.sketch == "none":
            products = 2 * len(self.rollout) ** 2 * self.trained
            found["gram_flops"] = products / max(found["time/gram"], 1e-9)
        return found

    @contextmanager
    def learner(self, config: Config, store: str) -> Iterator[Learner]:
        made = Learner(config, self.engine, store, PhaseTimer())
        try:
            yield made
        finally:
            if made.per_sample:
                made.per_sample.remove()
            del made
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def log_probs(self) -> dict[str, float]:
        """Of the responses, as the reference's are computed."""
        config = configured(self.size, self.folder, VARIANTS["GRPO, mean"], self.checkpointing)
        with self.learner(config, "device") as learner:
            return {"seconds": seconds_of(lambda: learner.passes.fixed_log_probs(self.rollout))}

    def prompts(self) -> list[list[int]]:
        first = self.rollout.select(range(0, len(self.rollout), GROUP))
        rows = zip(first.prompt_ids, first.prompt_mask, strict=True)
        return [ids[mask].tolist() for ids, mask in rows]

    def sample(self, sampler: Any) -> dict[str, float]:
        """Tokens a second, and bytes of the weights that are read for them."""
        prompts, limit = self.prompts(), self.size.response // 4
        draws = [Draw(0, 0, number) for number in range(len(prompts))]
        counted: list[int] = []

        def run() -> None:
            found = sampler.sample(prompts, draws, GROUP, 1.0, max_new_tokens=limit)
            counted.append(int(found.lengths.sum()))

        spent = seconds_of(run, 1)
        held = sum(p.numel() * p.element_size() for p in self.engine.module.parameters())
        rates = {"tokens_a_second": counted[-1] / spent, "weights_bytes": held * limit / spent}
        return {"seconds": spent} | rates

    def hf(self) -> dict[str, float]:
        limits = self.size.response // 4, self.size.samples
        return self.sample(HuggingFaceSampler(self.engine.module, (1,), PAD, *limits))

    def vllm(self) -> dict[str, Any]:
        if find_spec("vllm") is None:
            return {"skipped": "vLLM is not installed"}
        from capo_ds.rollout.colocated import ColocatedSampler

        config = configured(self.size, self.folder, VARIANTS["GRPO, mean"], self.checkpointing)
        context = max(self.size.prompt + self.size.response, 192)
        sampler = ColocatedSampler(self.engine.module, (1,), PAD, context, config, "gpu")
        with sampler.awake():
            sampler.sync()
            return self.sample(sampler)


def measure_shape(name: str, samples: int | None, record: Record, folder: Path) -> None:
    """All of one shape, on the device of this process."""
    size = SHAPES[name]
    size = replace(size, samples=samples or size.samples)
    record.measure("ceilings", ceilings)
    bench = Bench(size, folder)
    record.measure("log-probabilities", bench.log_probs)
    for variant in (PLAIN, *ORDER):
        record.measure(variant, lambda variant=variant: bench.update(variant))
    record.measure("rollout, hf", bench.hf)
    record.measure("rollout, vllm", bench.vllm)
