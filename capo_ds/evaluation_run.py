"""Evaluation on its own, outside training: a model, its benchmarks, a table and its files."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import cast

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from capo_ds.adapters import adapter_place
from capo_ds.config import Config, ConfigError
from capo_ds.distributed import comm
from capo_ds.evaluation import Evaluation, Evaluator, summarise, table, write_completions
from capo_ds.hub import fetch_place
from capo_ds.models import load_base_model, load_tokenizer
from capo_ds.rollout.base import end_tokens, model_context, pad_token
from capo_ds.rollout.hf import HuggingFaceSampler, stop_at
from capo_ds.run_folder import FolderLock
from capo_ds.tasks import Judge
from capo_ds.terminal import columns, wrapped

RESULTS_FILE = "results.json"
COMPLETIONS_FILE = "completions.jsonl"


def run(config: Config) -> None:
    """launchers/evaluate.py: a model, with its adapter if there is one, on all benchmarks, by the
    Hugging Face sampler.

    Rank 0 prints the table and writes results and completions.
    """
    folder = Path(config.evaluation.output_dir)
    key, adapter = adapter_of(config)
    if adapter is not None:
        fetch_place(key, adapter)
    with comm.together("start-up"):
        lock = FolderLock("evaluation.output_dir", folder) if comm.is_main() else None
        tokenizer = load_tokenizer(config.model)
        judge = Judge(config.reward.time_limit, config.reward.workers)
        evaluator = Evaluator(config, tokenizer, judge)
        model = load_model(config)
        cast(nn.Module, model).to(comm.device()).eval()  # transformers' own `to` has no type
        evaluator.check_lengths(model_context(model))
    if comm.is_main():
        print(_introduction(config, evaluator), flush=True)
    sampler = HuggingFaceSampler(
        model,
        end_tokens(model, tokenizer),
        pad=pad_token(tokenizer),
        max_new_tokens=evaluator.limit,
        batch_size=config.rollout.batch_size,
        stop=stop_at(tokenizer, config.prompt.stop),
    )
    start = time.perf_counter()
    evaluations = evaluator.evaluate(sampler)
    seconds = time.perf_counter() - start
    comm.on_main("writing the results", lambda: _report(config, evaluations, seconds))
    if lock:
        lock.release()


def adapter_of(config: Config) -> tuple[str, str | None]:
    """The adapter that is evaluated, after the key that names it: without one of its own, that
    which a run of the settings would begin with."""
    if config.evaluation.adapter is None and config.model.adapter is not None:
        return "model.adapter", config.model.adapter
    return "evaluation.adapter", config.evaluation.adapter


def load_model(config: Config) -> PreTrainedModel | PeftModel:
    """The causal LM with its adapter, see `adapter_of`, which is here or fetched. Raises
    `ConfigError`."""
    key, adapter = adapter_of(config)
    if adapter is None:
        return load_base_model(config.model)
    place = adapter_place(adapter, key)
    model = load_base_model(config.model)
    try:
        return PeftModel.from_pretrained(model, place)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{key}: {adapter!r} is no adapter of {config.model.path}: {error}"
        ) from error


def _introduction(config: Config, evaluator: Evaluator) -> str:
    settings, (key, adapter) = config.evaluation, adapter_of(config)
    how = "greedy"
    if settings.temperature:
        how = f"{settings.samples} responses at temperature {settings.temperature:g}"
    rows = {
        "model": f"{config.model.path} ({config.model.dtype})",
        "adapter": f"{adapter} ({key})" if adapter else "none",
        "decoding": f"{how}, up to {evaluator.limit} tokens, stop at {config.prompt.stop or 'end'}",
        "benchmarks": ", ".join(f"{b.title} ({len(b.problems)})" for b in evaluator.benchmarks),
        "prompt": evaluator.benchmarks[0].problems[0].prompt,
    }
    width = max(map(len, rows))
    told = "\n".join(
        f"{name:>{width}}  {value}".replace("\n", "\n" + " " * (width + 2))
        for name, value in rows.items()
    )
    return wrapped(told, columns(sys.stdout), indent=width + 2)


def _report(config: Config, evaluations: list[Evaluation], seconds: float) -> None:
    folder = Path(config.evaluation.output_dir)
    write_completions(evaluations, folder / COMPLETIONS_FILE)
    results = {
        "model": config.model.path,
        "adapter": adapter_of(config)[1],
        "seconds": seconds,
        "benchmarks": [summarise(evaluation) for evaluation in evaluations],
        "config": config.model_dump(mode="json"),
    }
    (folder / RESULTS_FILE).write_text(json.dumps(results, indent=2) + "\n")
    print(table(evaluations))
    print(f"{seconds:.1f} s; {folder / RESULTS_FILE}, {folder / COMPLETIONS_FILE}", flush=True)
