"""A rehearsal at start-up: in a second or two, everything that a run will do with its model.

Two prompts are sampled, the rows are passed alone and together, twice, and one backward pass is
made per sample and compared with autograd's; `trial_save` saves once what the run will save. What
does not hold would otherwise show after hours, or never: as a gradient that is not the policy's.

It leaves no trace: random numbers come from generators of its own, the LoRA factors, which it
moves away from zero so that they are felt, get their bits back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from capo_ds.architecture import refused, text_config
from capo_ds.compilation import uncompiled
from capo_ds.config import Config, ConfigError
from capo_ds.distributed import comm
from capo_ds.distributed.engine import CapoEngine
from capo_ds.gradients.per_sample import PerSampleGradients
from capo_ds.gradients.store import GradientStore
from capo_ds.learning.micro_batches import micro_batches
from capo_ds.log_probs import largest_logit, log_prob_bound, token_log_probs
from capo_ds.models import first_passes
from capo_ds.rollout.base import Draw, model_context
from capo_ds.rollout.choose import shares_policy
from capo_ds.rollout.hf import HuggingFaceSampler
from capo_ds.rollout.rollout import Rollout, assemble

PROMPT_TOKENS = (11, 6)  # of the two prompts: unequal, so that one is padded
NEW_TOKENS = 6
ENDS_EVERY = 3  # every third token of the vocabulary ends a row, so that they end apart
NOISE = 0.02  # standard deviation of what is added to the factors
SEED = 20  # of the noise and of the sampling
# REPEATED: of two passes that round alike, as a share of `log_prob_bound`. GRADIENTS: relative,
# over all factors, by dtype.
REPEATED = 0.1
GRADIENTS = {"float32": 1e-3, "bfloat16": 0.2}


@dataclass
class Passes:
    """How the run's passes are made: what ZeRO 3 needs around them.

    whole: around reading and changing parameters. gathered: around passes that no other rank takes
    part in, as where the policy samples. end: after a backward pass. lockstep: whether other ranks
    take part in all other passes.
    """

    whole: Callable[..., AbstractContextManager] = lambda *_, **__: nullcontext()
    gathered: Callable[[], AbstractContextManager] = nullcontext
    end: Callable[[], None] = lambda: None
    lockstep: bool = False


def passes_of(engine: CapoEngine) -> Passes:
    """Of a run with this engine."""
    return Passes(engine.whole, engine.gathered, engine.end_of_pass, engine.lockstep)


@dataclass
class Findings:
    """Differences found. Log-probabilities in nats, mean over the worst row; the gradient's
    relative, over all factors of the worst sample. None: not looked at.

    repeated: of two passes over the same rows. alone: of a row alone and in the batch. sampler: of
    the sampler's and the training pass. gradient: of per-sample and autograd's gradients.
    compiled: of the gradient of compiled layers and of the layers as written.
    """

    repeated: float
    alone: float
    sampler: float | None
    gradient: float | None
    largest_logit: float
    compiled: float | None = None


def rehearse(
    config: Config, policy: PeftModel, prompts: list[list[int]], passes: Passes | None = None
) -> Findings:
    """Make the passes of a run on two of its prompts, on all ranks alike.

    Raises:
        ConfigError: on all ranks, saying what the model does that cannot be trained, and what to
            do about it.
    """
    passes = passes or Passes()
    where = ["load"]
    start = f"model.path: {_kind(policy)} models cannot be trained with these settings: "
    fails = refused(lambda: f"{start}{where[-1]} fails in a rehearsal")
    with comm.phase("rehearsal", passes.lockstep), fails:
        if passes.lockstep:  # the hooks that gather weights are there only now
            first_passes(policy, next(policy.parameters()).device, passes.end)
        chosen = _two_prompts(config, policy, prompts)
        findings = _measure(config, policy, chosen, passes, where)
    with comm.together("rehearsal"):
        _judge(config, policy, findings)
    return findings


def _measure(
    config: Config,
    policy: PeftModel,
    prompts: list[list[int]],
    passes: Passes,
    where: list[str],
) -> Findings:
    log_probs = partial(_log_probs, config, policy)
    factors = [p for p in policy.parameters() if p.requires_grad]
    with _random_numbers_kept(), _moved(factors, passes.whole), torch.no_grad():
        where.append("sampling with the model's cache")
        rows = _rows(config, policy, prompts, passes)
        parts = [
            rows.take(list(part)) for part in micro_batches(rows.widths.tolist(), config.train)
        ]
        more, most = _agreed(parts, passes.lockstep)
        where.append("a pass over a batch of rows")
        together, again = (
            [log_probs(part) for part in parts + more][: len(parts)] for _ in range(2)
        )
        where.append("a pass over one row")
        alone = [log_probs(rows.take([row])) for row in range(len(rows))]
        findings = Findings(
            repeated=max(map(_difference, together, again, parts)),
            alone=_worst_row(together, [row[0] for row in alone], parts),
            sampler=None,
            gradient=None,
            largest_logit=largest_logit(policy, parts[0].input_ids(), parts[0].attention_mask()),
        )
        if _samples_itself(config):
            sampled = [part.log_probs for part in parts]
            findings.sampler = max(map(_difference, sampled, together, parts))
        some = rows.take([0, len(rows) - 1][:most])
        if config.model.compile:
            where.append("a pass through compiled layers (set model.compile to false)")
            with torch.enable_grad():
                findings.compiled = _compiled_error(factors, lambda: log_probs(some).sum())
        if config.uses_per_sample_gradients:
            where.append("a backward pass that keeps samples apart")
            with torch.enable_grad():
                findings.gradient = _gradient_error(policy, lambda: log_probs(some).sum(1), passes)
    return findings


def _agreed(parts: list[Rollout], lockstep: bool) -> tuple[list[Rollout], int]:
    """What this rank passes besides, so that all make equally many passes in lockstep, though the
    widths of their rows differ; and the most rows of a part, that every rank has."""
    most = max(map(len, parts))
    if not lockstep:
        return [], most
    passes = comm.max_over_ranks(len(parts))
    return parts[-1:] * (passes - len(parts)), -comm.max_over_ranks(-most)


def _log_probs(config: Config, policy: PeftModel, rows: Rollout) -> Tensor:
    """Of the training pass."""
    ids, attention = rows.input_ids(), rows.attention_mask()
    return token_log_probs(policy, ids, attention, rows.completion_mask, config.rollout.temperature)


def _samples_itself(config: Config) -> bool:
    """Whether the run's responses are decoded as here: with the model's cache."""
    return config.rollout.sampler in ("hf", "process")


def _judge(config: Config, policy: PeftModel, found: Findings) -> None:
    """Raises `ConfigError` for the first of the findings that rounding does not explain."""
    bound = log_prob_bound(config.model.dtype, found.largest_logit)
    start = f"model.path: this {_kind(policy)} model cannot be trained with these settings: "
    if not found.repeated <= REPEATED * bound:  # NaN is not
        raise ConfigError(
            f"{start}two passes over the same rows differ by {found.repeated:.3g} nats a token; it "
            "draws random numbers or keeps a state from pass to pass (or its weights are not "
            "finite). Choose another model"
        )
    if not found.alone <= bound:
        raise ConfigError(
            f"{start}a row's log-probabilities depend on the rows beside it: alone and in a batch "
            f"they differ by {found.alone:.3g} nats a token; set train.micro_batch_size to 1, or "
            "choose another model"
        )
    if found.sampler is not None and not found.sampler <= bound:
        raise ConfigError(
            f"{start}decoding with its cache and the training pass differ by {found.sampler:.3g} "
            "nats a token, so what is sampled is not what is trained; set rollout.sampler to vllm "
            "(or model.attn_implementation to eager), or choose another model"
        )
    if found.gradient is not None and not found.gradient <= GRADIENTS[config.model.dtype]:
        raise ConfigError(
            f"{start}its per-sample gradients are not autograd's: the relative error is "
            f"{found.gradient:.3g}; some layer with LoRA factors mixes the samples of a batch. "
            "Name only attention and MLP layers in model.lora_targets"
        )
    if found.compiled is not None and not found.compiled <= GRADIENTS[config.model.dtype]:
        raise ConfigError(
            f"model.compile: through compiled layers the gradient of this {_kind(policy)} model "
            f"is another: the relative difference is {found.compiled:.3g}; set it to false"
        )


def _two_prompts(config: Config, policy: PeftModel, prompts: list[list[int]]) -> list[list[int]]:
    """Ends of two of the run's prompts, of unequal length.

    Raises:
        ConfigError: for ids that the model has no embedding of.
    """
    vocabulary = text_config(policy.config).vocab_size
    if (largest := max(map(max, prompts))) >= vocabulary:
        raise ConfigError(
            f"model.path: the tokenizer gives token {largest}, but the model knows {vocabulary}; "
            "they are not of one model: save them in one folder"
        )
    room = max(2, model_context(policy) - min(NEW_TOKENS, config.rollout.max_new_tokens))
    lengths = [min(length, room - number) for number, length in enumerate(PROMPT_TOKENS)]
    chosen = [prompts[0], prompts[min(1, len(prompts) - 1)]]
    return [prompt[-length:] for prompt, length in zip(chosen, lengths, strict=True)]


def _rows(config: Config, policy: PeftModel, prompts: list[list[int]], passes: Passes) -> Rollout:
    """Prompts with responses, in the order of their widths, as training takes them."""
    if _samples_itself(config):
        rows = _sample(config, policy, prompts, passes)
    else:
        rows = _cut_in_two(policy, prompts)
    return rows.take(rows.widths.argsort(stable=True))


def _sample(config: Config, policy: PeftModel, prompts: list[list[int]], passes: Passes) -> Rollout:
    """At ZeRO 3 as in a run: each rank its own responses, with all weights gathered; but where a
    run's samples elsewhere, and no rank need hold them all, in lockstep, with no row that ends."""
    rollout = config.rollout
    alone = not passes.lockstep or shares_policy(config)
    shared = rollout.batch_size >= 2 * rollout.group_size  # whether prompts share a batch
    sampler = HuggingFaceSampler(
        policy,
        ends=range(0, text_config(policy.config).vocab_size if alone else 0, ENDS_EVERY),
        pad=0,
        max_new_tokens=min(NEW_TOKENS, rollout.max_new_tokens),
        batch_size=4 if shared else 2,
    )
    own = comm.rank() if passes.lockstep and alone else 0
    draws = [Draw(SEED, own, number) for number in range(len(prompts))]
    with passes.gathered() if alone else nullcontext():
        return sampler.sample(prompts, draws, 2, rollout.temperature)


def _cut_in_two(policy: PeftModel, prompts: list[list[int]]) -> Rollout:
    """Where another engine samples: the prompts' own halves as prompts and responses."""
    halves = [max(1, len(prompt) // 2) for prompt in prompts]
    completions = [p[half:] or p for p, half in zip(prompts, halves, strict=True)]
    return assemble(
        [p[:half] for p, half in zip(prompts, halves, strict=True)],
        completions,
        [[0.0] * len(completion) for completion in completions],
        [False] * len(prompts),
        0,
        next(policy.parameters()).device,
    )


def _gradient_error(policy: PeftModel, objectives: Callable[[], Tensor], passes: Passes) -> float:
    """Of the first sample of a batch: the largest relative error over samples of its gradient."""
    per_sample = PerSampleGradients(policy)
    try:
        with torch.no_grad():
            count = len(objectives())
        shapes = per_sample.shapes
        store = GradientStore(shapes, count, next(policy.parameters()).device)
        per_sample.backward(objectives, store)
        passes.end()
    finally:
        per_sample.remove()
    worst = 0.0
    for sample in range(count):
        expected = torch.autograd.grad(
            objectives()[sample], per_sample.parameters, allow_unused=True
        )
        passes.end()
        error = square = 0.0
        for rows, gradient in zip(store.rows, expected, strict=True):
            gradient = torch.zeros_like(rows[sample]) if gradient is None else gradient
            error += float((rows[sample] - gradient).double().square().sum())
            square += float(gradient.double().square().sum())
        worst = max(worst, (error / square) ** 0.5 if square else float("inf"))
    return worst


def _compiled_error(factors: list[nn.Parameter], objective: Callable[[], Tensor]) -> float:
    """Relative, of the gradient through compiled layers."""
    compiled = torch.autograd.grad(objective(), factors)
    with uncompiled():
        plain = torch.autograd.grad(objective(), factors)
    errors = [(one - other).norm() for one, other in zip(compiled, plain, strict=True)]
    norms = [other.norm() for other in plain]
    return float(torch.stack(errors).norm() / torch.stack(norms).norm())


def _difference(one: Tensor, other: Tensor, rows: Rollout) -> float:
    """Mean |difference| over the tokens of the worst row. (B, T) each."""
    width = min(one.shape[1], other.shape[1])
    sums = (one[:, :width] - other[:, :width]).abs().sum(1) / rows.lengths
    return float(sums.max())


def _worst_row(together: list[Tensor], alone: list[Tensor], parts: list[Rollout]) -> float:
    worst, rows = 0.0, iter(alone)
    for values, part in zip(together, parts, strict=True):
        for row, length in zip(values, part.lengths.tolist(), strict=True):
            difference = float((row[:length] - next(rows)[:length]).abs().mean())
            worst = max(worst, difference) if difference == difference else float("nan")
    return worst


@contextmanager
def _moved(factors: list[nn.Parameter], whole: Callable[..., Any]) -> Iterator[None]:
    """Inside, noise is on the LoRA factors: a fresh B of zeros hides all but its own gradient."""
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad(), whole(factors, modifier_rank=0):
        kept = [factor.detach().clone() for factor in factors]
        for factor in factors:
            factor.data += NOISE * torch.randn(factor.shape, generator=generator).to(factor)
    yield  # what fails here ends the run: no rank may wait for others to undo this
    with torch.no_grad(), whole(factors, modifier_rank=0):
        for factor, value in zip(factors, kept, strict=True):
            factor.data.copy_(value)


@contextmanager
def _random_numbers_kept() -> Iterator[None]:
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        yield


def _kind(policy: PeftModel) -> str:
    return policy.config.model_type
