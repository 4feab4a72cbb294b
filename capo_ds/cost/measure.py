"""The rates of the ranks and links that this process group has."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
import torch.distributed as dist
from peft import PeftModel

from capo_ds.aggregation.update import Samples
from capo_ds.capacity import measure_capacity
from capo_ds.config import Config, ConfigError
from capo_ds.configured import make_solver, sketches
from capo_ds.cost.cluster import Cluster, Link, Rates, Sketching
from capo_ds.cost.collectives import Collectives
from capo_ds.cost.shape import Shape
from capo_ds.cost.step import Step
from capo_ds.distributed import comm
from capo_ds.distributed.gram import product_with_itself
from capo_ds.gradients.per_sample import PerSampleGradients
from capo_ds.gradients.sketch import DEFAULT_DIM
from capo_ds.gradients.store import GradientStore
from capo_ds.memory import sketched_together
from capo_ds.models import token_log_probs
from capo_ds.rollout.base import Draw
from capo_ds.rollout.hf import HuggingFaceSampler
from capo_ds.seeding import Stream, generator

LONG_ENOUGH = 0.05  # seconds of what is timed, with all ranks at it
ROWS, DECODED, COLUMNS = 64, 8, 1 << 14
SOLVED = (256, 2048)
TIMES, ECHOES = 5, 8
EXCHANGE = 0.02  # seconds of one that tells a link's rate, of a megabyte at least
PASS = 2.0  # seconds, beyond which no larger micro-batch is tried
FEW, MANY = 8, 64  # gradients that are sketched together, to tell the map's cost from its use
LEAST = 0.1  # of the longer of two times, what their difference is at least, were they noise alone
SKETCHED = {"cpu": 1 << 17, "cuda": 1 << 24}  # numbers of each of them, if there are as many


def check_measurable(hosts: list[str], machines: int) -> None:
    """Whether the ranks on these hosts stand for so many machines. Raises `ConfigError`."""
    names = set(hosts)
    if machines > 1 and len(names) == 1:
        raise ConfigError(
            f"--nodes {machines}: the link between machines cannot be measured on one; start "
            "--dry-run on two of them, or name a file of rates by --cluster "
            "(such as builtin:h100)"
        )
    if len({hosts.count(name) for name in names}) > 1:
        raise ConfigError(
            f"--nodes {machines}: machines with unequal numbers of ranks ({', '.join(hosts)}) are "
            "no pattern for others; start as many on each"
        )


def measure_cluster(config: Config, policy: PeftModel, hosts: list[str]) -> Cluster:
    """What these ranks achieve, all of them at work (all ranks; the slowest's).

    hosts: of every rank, as `check_measurable` wants them.
    """
    names = list(dict.fromkeys(hosts))
    here = hosts.count(hosts[0])
    first = [rank for rank, host in enumerate(hosts) if host == names[0]]
    within = link(list(zip(first[::2], first[1::2], strict=False)))
    between = None
    if len(names) > 1:
        second = [rank for rank, host in enumerate(hosts) if host == names[1]]
        between = link(list(zip(first, second, strict=True)), together=True)
    memory = measure_capacity(comm.device(), here)
    shape = Shape.of(policy, config.model.dtype)
    step = Step(config, shape, len(hosts), config.rollout.max_new_tokens)
    cluster = Cluster(
        backend="nccl" if comm.device().type == "cuda" else "gloo",
        ranks=here,
        within=within,
        between=between,
        rates=measure_rates(policy, step),
        memory=min(comm.gather(memory.device)),
        host_memory=min(comm.gather(memory.host)),
    )
    if len(hosts) == 1:
        return cluster
    share = _share_of_all_to_all(Collectives(cluster, len(names)), step)
    return cluster.model_copy(update={"all_to_all": share})


def link(pairs: list[tuple[int, int]], together: bool = False) -> Link | None:
    """Between the ranks of these pairs, which exchange at the same time (all ranks).

    together: they share an adapter's machine, whose rate is the sum.
    """
    if not pairs:
        return None
    mine = next((pair for pair in pairs if comm.rank() in pair), None)
    other = sum(mine) - comm.rank() if mine else None
    _exchange(other, 8)  # opens the connection
    latency = min(max(comm.gather(_exchange(other, 8, ECHOES))) for _ in range(TIMES))
    size = 1 << 20
    while True:  # the same sizes on all ranks
        slowest = max(comm.gather(median(_exchange(other, size) for _ in range(TIMES))))
        if slowest > EXCHANGE or size >= 1 << 28:
            break
        size *= 4
    rate = size / max(slowest - latency, 1e-9)
    return Link(seconds=latency, bytes_per_second=rate * (len(pairs) if together else 1))


def _exchange(other: int | None, size: int, times: int = 1) -> float:
    """Seconds until as much has come from the other rank as was sent, the mean of some in a row,
    as a ring's stages are, after a first that may find the other not ready; 0 without one.

    Receives are asked for first: where a rank begins to send before it is ready to receive, its
    own message goes before the word that it is (gloo)."""
    comm.max_over_ranks(0)
    if other is None:
        return 0.0
    sent = torch.ones(size, dtype=torch.uint8, device=comm.device())
    received = torch.empty_like(sent)

    def once() -> None:
        operations = [dist.P2POp(dist.irecv, received, other), dist.P2POp(dist.isend, sent, other)]
        for request in dist.batch_isend_irecv(operations):
            request.wait()

    once()
    return _seconds(once, times)


def _share_of_all_to_all(links: Collectives, step: Step) -> float:
    """Of the links' rate, what the ranks reach when all exchange with all, some times in a row; as
    many bytes as the step's largest, for the share is by their number."""
    exchanges = [one for phase in step.phases().values() for one in phase.exchanges]
    size = int(max((one.count for one in exchanges if one.kind == "all_to_all"), default=0))
    size = max(size, 1 << 20)
    while links.seconds("all_to_all", size) < EXCHANGE and size < 1 << 28:
        size *= 4
    each = size // 4 // comm.world_size()
    counts = [0 if rank == comm.rank() else each for rank in range(comm.world_size())]
    sent = torch.ones(sum(counts), device=comm.device())
    received = torch.empty_like(sent)

    def once() -> None:
        comm.all_to_all(sent, counts, received, counts)

    times = max(1, min(TIMES, round(1 / links.seconds("all_to_all", size))))
    spent = []
    for _ in range(1 + 3):  # as often on all ranks, of which the first does not count
        comm.max_over_ranks(0)
        spent.append(_seconds(once, times))
    comm.take_bytes_sent()
    seconds = max(comm.gather(median(spent[1:])))
    latency = links.seconds("all_to_all", 0)
    return min(1.0, (links.seconds("all_to_all", size) - latency) / max(seconds - latency, 1e-9))


def measure_rates(policy: PeftModel, step: Step) -> Rates:
    """Of the ranks, which all measure at once."""
    config = step.config
    passes, per_sample, memory = _passes(config, policy, step)
    sizes = sorted({min(step.samples, size) for size in SOLVED})
    return Rates(
        passes=passes,
        per_sample=per_sample,
        products=_products(config, step.samples),
        memory=memory,
        sketch=_sketching(config, step.shape),
        sampling=_sampling(policy, step),
        optimizer=_optimizer(step.shape),
        solve={size: _solve(config, size) for size in sizes},
    )


def _passes(config: Config, policy: PeftModel, step: Step) -> tuple[float, float, float]:
    """Operations a second of passes, as many rows as a micro-batch has or are long enough; the
    seconds of those with per-sample gradients over theirs; bytes a second of a weighted sum."""
    prompt, response = step.prompt, step.response
    per_sample = PerSampleGradients(policy)
    rows, most = 1, step.rows
    try:
        while True:
            store = GradientStore(step.shape.factors, rows, comm.device())
            seconds, plain = in_turns(
                lambda: _gradients(per_sample, policy, store, rows, prompt, response),  # noqa: B023
                lambda: _log_probs(policy, rows, prompt, response).sum().backward(),  # noqa: B023
            )
            if rows >= most or seconds > PASS:
                break
            rows = min(most, rows * 4)
        weights = torch.ones(rows, device=comm.device())
        combined = timed(lambda: store.combine(weights.expand(len(step.shape.factors), rows)))
    finally:
        per_sample.remove()
        policy.zero_grad()
    twice = config.model.gradient_checkpointing
    flops = step.shape.backward(rows, prompt, response, twice)
    count = 4 * rows * step.shape.trained
    return flops / plain, seconds / plain, count / combined


def _sketching(config: Config, shape: Shape) -> dict[str, Sketching]:
    """From two numbers of gradients that are sketched together, at the first of the factors."""
    if (make := sketches(config.gradients, shape.factors)) is None:
        return {}
    sketch, device = make(0), comm.device()
    rows: list[torch.Tensor] = []
    for factor in shape.factors:
        rows.append(torch.randn(MANY, *factor, device=device))
        if (numbers := sum(row[0].numel() for row in rows)) >= SKETCHED[device.type]:
            break
    few, many = (timed(lambda: sketch(row[:count] for row in rows)) for count in (FEW, MANY))  # noqa: B023
    each = max(many - few, LEAST * many) / (MANY - FEW)
    drawn, size = few - FEW * each, 4.0 * numbers
    if sketched_together(config):  # a dense one
        size *= config.gradients.sketch_dim / DEFAULT_DIM
    rate = Sketching(applied=size / each, drawn=size / drawn if drawn > 0 else None)
    return {config.gradients.sketch: rate}


def _gradients(
    per_sample: PerSampleGradients,
    policy: PeftModel,
    store: GradientStore,
    rows: int,
    prompt: int,
    response: int,
) -> None:
    per_sample.backward(lambda: _log_probs(policy, rows, prompt, response), store, first=0)


def _log_probs(policy: PeftModel, rows: int, prompt: int, response: int) -> torch.Tensor:
    """Of each row, the mean."""
    ids = torch.ones(rows, prompt + response, dtype=torch.long, device=comm.device())
    mask = torch.ones_like(ids)
    completion = torch.ones(rows, response, dtype=torch.bool, device=comm.device())
    return token_log_probs(policy, ids, mask, completion, 1.0).mean(1)


def _products(config: Config, samples: int) -> float:
    dtype = getattr(torch, config.gradients.dtype)
    rows = torch.randn(samples, COLUMNS, device=comm.device()).to(dtype)
    return 2 * samples**2 * COLUMNS / timed(lambda: product_with_itself(rows))


def _sampling(policy: PeftModel, step: Step) -> float:
    """By the sampler `hf`; for the others the rate at which memory is read, which they come near
    to at best."""
    rollout, shape = step.config.rollout, step.shape
    if rollout.sampler != "hf":
        block = torch.ones(1 << 26, device=comm.device())
        return 4 * len(block) / timed(block.sum)
    rows = min(step.sampled, rollout.batch_size, ROWS)
    prompts = [[0] * rollout.max_prompt_tokens] * rows
    draws = [Draw(0, 0, row) for row in range(rows)]
    sampler = HuggingFaceSampler(policy, (-1,), 0, 1 + DECODED, rollout.batch_size)

    def sample(tokens: int) -> None:
        sampler.sample(prompts, draws, 1, 1.0, max_new_tokens=tokens)

    first, all_of_them = in_turns(lambda: sample(1), lambda: sample(1 + DECODED))
    token = max(all_of_them - first, LEAST * all_of_them) / DECODED
    cache = rows * (rollout.max_prompt_tokens + DECODED / 2) * shape.cache
    return (shape.stored + 4 * shape.trained + cache) / token


def _optimizer(shape: Shape) -> float:
    """Seconds a factor, as the engine does it: the gradient enters by a surrogate, then its norm,
    and AdamW."""
    factors = [torch.nn.Parameter(torch.zeros(f, device=comm.device())) for f in shape.factors]
    gradient = [torch.ones_like(factor) for factor in factors]
    adam = torch.optim.AdamW(factors)

    def step() -> None:
        adam.zero_grad()
        torch.stack(
            [(f * g).sum() for f, g in zip(factors, gradient, strict=True)]
        ).sum().backward()
        torch.nn.utils.clip_grad_norm_(factors, 1.0)
        adam.step()

    return timed(step) / len(factors)


def _solve(config: Config, samples: int) -> float:
    """Of random gradients with a mode in common, with all that a step measures."""
    random = generator(0, Stream.HELDOUT_HALVES, 0)
    rows = random.standard_normal((samples, 2 * samples)) + 0.1
    signs, groups = random.choice([-1.0, 1.0], samples), np.arange(samples) // 8
    given = Samples((rows @ rows.T)[None], signs, groups, samples)
    seconds = 0.0
    if comm.is_main():  # as in a step, alone; what the first call loads is not in it
        make_solver(config).solve(given, random)
        seconds = _seconds(lambda: make_solver(config).solve(given, random), 1, clock())
    return comm.broadcast(seconds)


def timed(call: Callable[[], object]) -> float:
    """Seconds of a call without collectives which all ranks make at once: the median of some turns,
    of each the slowest rank's (all ranks). On a CPU those that it computes: what it waits for a
    core that others are at is no rank's rate."""
    return in_turns(call)[0]


def in_turns(*calls: Callable[[], object]) -> list[float]:
    """`timed` of each, one after the other again and again, for what is compared."""
    spent = []
    for call in calls:
        call()  # which may load or compile
        spent.append(_seconds(call, 1, clock()))
    slowest = np.max(comm.gather(spent), axis=0)  # that ranks make equally many, to the last
    counts = [max(1, round(LONG_ENOUGH / seconds)) for seconds in slowest]
    comm.max_over_ranks(0)
    turns = [
        [_seconds(call, count, clock()) for call, count in zip(calls, counts, strict=True)]
        for _ in range(TIMES)
    ]
    return np.median(np.max(comm.gather(turns), axis=0), axis=0).tolist()


def clock() -> Callable[[], float]:
    """Of what a rank computes."""
    return time.perf_counter if torch.cuda.is_available() else time.thread_time


def _seconds(
    call: Callable[[], object], times: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Of one of so many in a row."""
    _settle()
    start = clock()
    for _ in range(times):
        call()
    _settle()
    return (clock() - start) / times


def _settle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
