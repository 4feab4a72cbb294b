"""Supervised warm-up: full-parameter training of a causal LM on a task's worked solutions.

A model that never writes the answer format gives RL no signal. This teaches it the format (and,
for a model started from random weights, the task) and stops at a chosen greedy accuracy.

The loss is the cross-entropy of the completion's tokens and the end-of-sequence token, averaged
over all such tokens of the global batch. It does not depend on how many ranks share the batch or
how many micro-batches a rank cuts its share into.
"""

import math
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import cast

import torch
from tqdm import tqdm
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from capo_ds.config import Config, ConfigError, ModelConfig, WarmupConfig
from capo_ds.distributed import comm
from capo_ds.distributed.supervised import SupervisedEngine
from capo_ds.evaluation import Evaluator
from capo_ds.interruption import Interruption
from capo_ds.models import load_base_model, load_tokenizer
from capo_ds.rollout.base import end_tokens, pad_token
from capo_ds.rollout.hf import HuggingFaceSampler, stop_at
from capo_ds.run_folder import FolderLock
from capo_ds.tasks import Judge, load_problems
from capo_ds.tasks.demonstrations import demonstrate
from capo_ds.tasks.prompts import encode as encode_prompts
from capo_ds.tasks.prompts import render
from capo_ds.warmup_folder import (
    CHECKPOINTS,
    check_saving,
    checkpoint_name,
    deciding_settings,
    last_word,
    saved_state,
    write_state,
)

RISE = 0.05  # share of max_steps in which the learning rate rises linearly
FINAL_RATE = 0.1  # the cosine ends at this share of the peak learning rate
IGNORED = -100  # label of tokens without loss
FINISHING = "ending after this step, with a checkpoint"
WEIGHT_FILES = ("*.safetensors", "*.bin")


@dataclass(frozen=True)
class Demonstration:
    """Token ids of a prompt and of the completion to imitate, which ends with end-of-sequence."""

    prompt: list[int]
    completion: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


@dataclass(frozen=True)
class Outcome:
    """How a warm-up ended: optimizer steps made, last greedy test accuracy, why it stopped.

    finished: False if it was asked to end; its checkpoint is then what there is.
    """

    steps: int
    accuracy: float
    reached: bool
    finished: bool = True


def run(config: Config) -> Outcome:
    """Warm up `config.model` on `config.task`; rank 0 saves model and tokenizer.

    Needs a process group (`comm.init`). All ranks return the same outcome.

    Raises:
        ConfigError: the config asks for what the model, the task or the ranks cannot give.
    """
    settings = config.warmup
    folder = Path(settings.output_dir)
    with comm.together("warm-up set-up"):
        check_batch_size(config)
        lock = FolderLock("warmup.output_dir", folder) if comm.is_main() else None
        tokenizer = load_tokenizer(config.model)
        demonstrations = encode(config, tokenizer)
        judge = Judge(config.reward.time_limit, config.reward.workers)
        evaluator = Evaluator(config, tokenizer, judge)
        model = load_model(config.model, settings.seed)
        check_saving(model, tokenizer, config.model.path)
    state = saved_state(config)
    first_step = state["step"] if state else 0
    engine = SupervisedEngine(
        model, config.deepspeed, config.train.micro_batch_size, micro_batches_per_step(config)
    )
    sampler = _greedy_sampler(config, engine.module, tokenizer)
    batches = shuffled_batches(demonstrations, settings.batch_size, settings.seed)
    checkpoints = folder / CHECKPOINTS
    if first_step:
        engine.load(checkpoints, checkpoint_name(first_step))
        batches = islice(batches, first_step, None)

    def test_accuracy() -> float:
        return evaluator.evaluate(sampler)[0].accuracy

    with Interruption(partial(last_word, checkpoints), FINISHING) as interruption:
        progress = Progress(first_step, partial(_save_checkpoint, config, engine), interruption)
        args = engine, batches, pad_token(tokenizer), settings, test_accuracy
        outcome = train(*args, progress)
    if outcome.finished:
        comm.on_main("saving", partial(_finish, engine.module, tokenizer, folder))
    if lock:
        lock.release()
    return outcome


@dataclass
class Progress:
    """Where a warm-up starts, how it saves a checkpoint (all ranks), and what may end it."""

    first_step: int = 0
    save: Callable[[int], None] | None = None
    interruption: Interruption | None = None

    @property
    def interrupted(self) -> bool:
        return self.interruption is not None and bool(comm.max_over_ranks(self.interruption.asked))


def train(
    engine: SupervisedEngine,
    batches: Iterator[list[Demonstration]],
    pad_id: int,
    settings: WarmupConfig,
    test_accuracy: Callable[[], float],
    progress: Progress | None = None,
) -> Outcome:
    """Step until an evaluation reaches `stop_accuracy`, at most `max_steps` times."""
    progress = progress or Progress()
    bar = tqdm(
        total=settings.max_steps,
        initial=progress.first_step,
        desc="warm-up",
        unit="step",
        disable=not comm.is_main(),
        dynamic_ncols=True,
    )
    accuracy, step, finished = 0.0, progress.first_step, True
    while step < settings.max_steps and accuracy < settings.stop_accuracy:
        rate = settings.learning_rate * learning_rate_at(step, settings.max_steps)
        loss = train_step(engine, next(batches), pad_id, rate)
        step += 1
        if step % settings.eval_every == 0 or step == settings.max_steps:
            accuracy = test_accuracy()
            if comm.is_main():
                bar.write(f"step {step}: loss {loss:.4f}, greedy test accuracy {accuracy:.1%}")
        known = f"{accuracy:.1%}" if step >= settings.eval_every else "not yet known"
        bar.set_postfix(loss=f"{loss:.3f}", accuracy=known, refresh=False)
        bar.update()
        done = step == settings.max_steps or accuracy >= settings.stop_accuracy
        finished = done or not progress.interrupted
        on_time = settings.save_every and step % settings.save_every == 0
        if progress.save and (not finished or done or on_time):
            progress.save(step)
        if not finished:
            break
    bar.close()
    return Outcome(step, accuracy, accuracy >= settings.stop_accuracy, finished)


def check_batch_size(config: Config) -> None:
    """Raises ConfigError where a rank would get no sequence."""
    if config.warmup.batch_size < comm.world_size():
        raise ConfigError(
            f"warmup.batch_size: {config.warmup.batch_size} is fewer sequences than the "
            f"{comm.world_size()} ranks; raise it"
        )


def load_model(config: ModelConfig, seed: int) -> PreTrainedModel:
    """The causal LM; a folder with a config but no weights starts from random ones of `seed`.

    Raises:
        ConfigError: the path names no causal LM.
    """
    if not _has_no_weights(Path(config.path)):
        return load_base_model(config)
    torch.manual_seed(seed)
    try:
        architecture = AutoConfig.from_pretrained(config.path)
        return AutoModelForCausalLM.from_config(architecture, dtype=getattr(torch, config.dtype))
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.path: cannot build {config.path!r}: {error}") from error


def _has_no_weights(folder: Path) -> bool:
    return folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in WEIGHT_FILES)


def encode(config: Config, tokenizer: PreTrainedTokenizerBase) -> list[Demonstration]:
    """Demonstrations of the train problems that fit the configured lengths.

    Raises:
        ConfigError: the styles cannot be used, or fewer problems are left than a batch needs.
        ValueError: the task cannot give the problems.
    """
    settings, limits = config.warmup, config.rollout
    problems = render(load_problems(config.task, "train"), config.prompt, tokenizer)
    try:
        told = demonstrate(problems, settings.styles, settings.seed)
    except ValueError as error:
        raise ConfigError(f"warmup.styles: {error}") from error
    if not told:
        raise ConfigError(f"task.name: {config.task.name!r} has no worked solutions to imitate")
    # In one call each: many times faster than text by text.
    prompts = encode_prompts(tokenizer, [problem for problem, _ in told])
    completions = tokenizer([text for _, text in told], add_special_tokens=False).input_ids
    demonstrations = [
        Demonstration(prompt, [*completion, cast(int, tokenizer.eos_token_id)])
        for prompt, completion in zip(prompts, completions, strict=True)
        if len(prompt) <= limits.max_prompt_tokens and len(completion) < limits.max_new_tokens
    ]
    if len(demonstrations) < settings.batch_size:
        raise ConfigError(
            f"warmup.batch_size: {settings.batch_size} is more than the {len(demonstrations)} "
            f"demonstrations of task {config.task.name!r} that fit rollout.max_prompt_tokens and "
            "rollout.max_new_tokens; lower it or raise task.train_problems"
        )
    return demonstrations


def shuffled_batches(
    demonstrations: Sequence[Demonstration], size: int, seed: int
) -> Iterator[list[Demonstration]]:
    """Global batches without end: every epoch in a new order, its incomplete last batch dropped."""
    rng = random.Random(seed)
    order = list(range(len(demonstrations)))
    while True:
        rng.shuffle(order)
        for start in range(0, len(order) - size + 1, size):
            yield [demonstrations[index] for index in order[start : start + size]]


def micro_batches_per_step(config: Config) -> int:
    """Micro-batches into which every rank cuts its share of a batch; the same on every rank."""
    largest_share = math.ceil(config.warmup.batch_size / comm.world_size())
    return math.ceil(largest_share / config.train.micro_batch_size)


def learning_rate_at(step: int, steps: int) -> float:
    """Share of the peak learning rate: a linear rise, then a cosine down to FINAL_RATE."""
    rise = max(1, round(RISE * steps))
    if step < rise:
        return (step + 1) / rise
    progress = (step - rise) / max(1, steps - rise)
    return FINAL_RATE + (1 - FINAL_RATE) * (1 + math.cos(math.pi * progress)) / 2


def train_step(
    engine: SupervisedEngine, batch: list[Demonstration], pad_id: int, learning_rate: float
) -> float:
    """One optimizer step on a global batch; returns its loss (nats per completion token)."""
    tokens = sum(len(demonstration.completion) for demonstration in batch)

    def share_of_mean(model: torch.nn.Module, micro_batch: list[Demonstration]) -> torch.Tensor:
        inputs, labels = collate(micro_batch, pad_id)
        return summed_loss(model, inputs.to(comm.device()), labels.to(comm.device())) / tokens

    micro_batches = split_by_length(comm.shard(batch), engine.micro_batches)
    return engine.step(micro_batches, share_of_mean, learning_rate)


def split_by_length(items: list[Demonstration], parts: int) -> list[list[Demonstration]]:
    """Cut into `parts` chunks of like length, so that little is padded; chunks may be empty."""
    items = sorted(items, key=len)
    size = math.ceil(len(items) / parts)
    return [items[part * size : (part + 1) * size] for part in range(parts)]


def collate(batch: list[Demonstration], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded input ids and labels [batch, longest]; only completion tokens have labels.

    Right padding needs no attention mask: under causal attention no real token sees a pad. An
    empty batch becomes one token without a label: every rank must go through every micro-batch.
    """
    longest = max((len(demonstration) for demonstration in batch), default=1)
    inputs = torch.full((max(1, len(batch)), longest), pad_id)
    labels = torch.full_like(inputs, IGNORED)
    for row, demonstration in enumerate(batch):
        start, end = len(demonstration.prompt), len(demonstration)
        inputs[row, :end] = torch.tensor(demonstration.prompt + demonstration.completion)
        labels[row, start:end] = inputs[row, start:end]
    return inputs, labels


def summed_loss(model: torch.nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum over labelled tokens of the negative log-likelihood, given inputs [batch, length]."""
    logits = model(input_ids=inputs, use_cache=False).logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
    )


def _greedy_sampler(
    config: Config, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> HuggingFaceSampler:
    return HuggingFaceSampler(
        model,
        end_tokens(model, tokenizer),
        pad_token(tokenizer),
        config.rollout.max_new_tokens,
        config.rollout.batch_size,
        stop_at(tokenizer, config.prompt.stop),
    )


def _save_checkpoint(config: Config, engine: SupervisedEngine, step: int) -> None:
    state = {"step": step, "ranks": comm.world_size(), "settings": deciding_settings(config)}
    checkpoints = Path(config.warmup.output_dir) / CHECKPOINTS
    engine.save(checkpoints, checkpoint_name(step))
    comm.on_main("saving", lambda: write_state(checkpoints, state))


def _finish(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    save(model, tokenizer, folder)
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write model and tokenizer so that `from_pretrained(folder)` loads them."""
    transformers_logging.disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
