"""Keys that were set, and that the other settings leave without effect.

A key is idle where no launcher reads it with these settings: what `evaluate` or `warmup` read of
the same file is not, nor what a part of the user's own may read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from functools import reduce
from typing import NamedTuple

from capo_ds.config.section import Section
from capo_ds.config.settings import Config
from capo_ds.config.task import DatasetConfig, TrainingSetConfig
from capo_ds.parts import ships

COLUMNS = "path subset prompt_column answer_column solution_column shuffle"
ONE_UPDATE = "objective.epochs objective.minibatches"
OF_DATA = f"{COLUMNS} split train_split test_split test_path"  # nothing to the arithmetic task


class Rule(NamedTuple):
    """keys: of `section`; none: all of them. because: of these keys. idle: where that is so."""

    section: str
    keys: str
    because: str
    idle: Callable[[Config], bool]


def _changed(config: Section, key: str) -> bool:
    return getattr(config, key) != type(config).model_fields[key].default


def _ratio_is_one(config: Config, key: str) -> bool:
    """And the key bounds it. (The usual bounds may be written down, as of a paper's setting.)"""
    one = config.on_policy and config.ratio_to == "trainer"
    return one and _changed(config.objective, key)


def _whole_mean(config: Config) -> bool:
    """g_0 is the same however the samples are grouped for a program."""
    program = config.program
    return config.aggregator == "mean" and program.norms == "none" and program.average == "mean"


RULES = [
    Rule("model", "lora_rank lora_alpha rslora lora_targets lora_exclude", "model.adapter",
         lambda c: c.model.adapter is not None),
    Rule("model", "reference", "objective.kl_weight", lambda c: c.objective.kl_weight == 0),
    Rule("prompt", "date", "prompt.template", lambda c: c.prompt.template != "chat"),
    Rule("rollout", "vllm_cache_gib tensor_parallel", "rollout.sampler",
         lambda c: c.rollout.sampler in ("hf", "process")),
    Rule("rollout", "probe_bound", "rollout.sampler", lambda c: c.rollout.sampler == "hf"),
    Rule("rollout", "server_url", "rollout.sampler",
         lambda c: c.rollout.sampler in ("hf", "process", "vllm")),
    Rule("rollout", "importance_cap", "rollout.importance_correction",
         lambda c: c.importance_correction == "none"),
    Rule("objective", "dual_clip", ONE_UPDATE, lambda c: _ratio_is_one(c, "dual_clip")),
    Rule("objective", "clip_low", ONE_UPDATE, lambda c: _ratio_is_one(c, "clip_low")),
    Rule("objective", "clip_high", ONE_UPDATE, lambda c: _ratio_is_one(c, "clip_high")),
    Rule("", "measure_conflict", "aggregator", lambda c: c.aggregator != "mean"),
    Rule("", "measure_heldout", "measure_conflict", lambda c: not c.uses_per_sample_gradients),
    Rule("program", "norm_quantile", "program.norms", lambda c: c.program.norms != "clip"),
    Rule("program", "norms_in", "program.norms", lambda c: c.program.norms == "none"),
    Rule("program", "tasks", "aggregator", lambda c: c.aggregator == "mean"),
    Rule("program", "blocks", "aggregator", _whole_mean),
    Rule("gradients", "", "measure_conflict", lambda c: not c.uses_per_sample_gradients),
    Rule("gradients", "sketch_dim", "gradients.sketch", lambda c: c.gradients.sketch == "none"),
    Rule("gradients", "dtype", "gradients.store", lambda c: c.gradients.store == "recompute"),
    Rule("capo", "", "aggregator", lambda c: c.aggregator != "capo"),
    Rule("capo", "slack_price", "capo.positive_share",
         lambda c: c.capo.positive_share is not None),
    Rule("capo", "on_infeasible", "capo.slack_price",
         lambda c: math.isfinite(c.capo.slack_price)),
    Rule("cagrad", "", "aggregator", lambda c: c.aggregator != "cagrad"),
    # The warm-up counts sequences in any case.
    Rule("train", "micro_batch_size", "train.micro_batch_tokens",
         lambda c: c.train.micro_batch_tokens is not None and "warmup" not in c.model_fields_set),
    Rule("evaluation", "seed", "evaluation.temperature", lambda c: c.evaluation.temperature == 0),
]  # fmt: skip


def idle_keys(config: Config) -> dict[str, list[str]]:
    """Keys that were set and change nothing, by what makes them idle (`aggregator: mean`).

    Settings that a run has written down, every key of them, are not all meant: those at their
    defaults are left out there.
    """
    found: dict[str, list[str]] = {}
    told: set[str] = set()
    everything = config.model_fields_set >= set(Config.model_fields)
    for name, section, keys, reason in _idle(config):
        for key in sorted(section.model_fields_set & keys):
            path = f"{name}.{key}" if name else key
            if path not in told and not (everything and not _changed(section, key)):
                found.setdefault(reason, []).append(path)
                told.add(path)
    return found


def idle_line(config: Config) -> str | None:
    """They in one line, for people."""
    parts = [f"{', '.join(keys)} ({reason})" for reason, keys in idle_keys(config).items()]
    return f"settings without effect here: {'; '.join(parts)}" if parts else None


def _idle(config: Config) -> Iterator[tuple[str, Section, set[str], str]]:
    """Name of a section, the section, keys of it that change nothing, and why."""
    for rule in RULES:
        if rule.idle(config):
            section: Section = getattr(config, rule.section) if rule.section else config
            keys = set(rule.keys.split()) or set(type(section).model_fields)
            yield rule.section, section, keys, ", ".join(_told(config, rule.because.split()))
    if config.task.mixture:
        yield "task", config.task, set(TrainingSetConfig.model_fields), "task.mixture"
    else:
        yield from _of_data_set("task", config.task)
    for name, entries in (
        ("task.mixture", config.task.mixture),
        ("evaluation.benchmarks", config.evaluation.benchmarks),
    ):
        for number, entry in enumerate(entries):
            yield from _of_data_set(f"{name}.{number}", entry)


def _of_data_set(name: str, entry: DatasetConfig) -> Iterator[tuple[str, Section, set[str], str]]:
    if not ships("task", entry.name):
        return
    keys = OF_DATA if entry.name == "arithmetic" else "levels asks"
    yield name, entry, set(keys.split()), f"{name}.name: {entry.name}"
    if entry.name != "arithmetic" and not entry.shuffle:
        yield name, entry, {"seed"}, f"{name}.shuffle: false"


def _told(config: Config, keys: list[str]) -> Iterator[str]:
    for key in keys:
        value = reduce(getattr, key.split("."), config)
        plain = value is None or isinstance(value, bool)
        yield f"{key}: {json.dumps(value) if plain else value}"
