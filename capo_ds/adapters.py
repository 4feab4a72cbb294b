"""The LoRA adapter of a policy: a fresh one, or one to go on from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.utils.save_and_load import load_peft_weights
from torch import nn
from transformers import PreTrainedModel

from capo_ds.architecture import (
    decoder_layers,
    linear_names,
    outside_the_decoder,
    plain_linear_layers,
)
from capo_ds.config import ConfigError, ModelConfig, folder_named
from capo_ds.distributed.zero import whole_in_passes
from capo_ds.hub import ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapter_snapshot
from capo_ds.peft_internals import active_adapter
from capo_ds.weight_files import problem

POLICY, REFERENCE = "default", "reference"  # names of adapters in PEFT
ALL_LINEAR = "all-linear"
# Ways to start an adapter that change the base weights, which are not in its folder.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
FIELDS_REFUSED = ("modules_to_save", "trainable_token_indices", "target_parameters")
FIELDS_REFUSED += ("layer_replication", "alora_invocation_tokens", "layers_to_transform")


def fresh_adapter(base: PreTrainedModel, config: ModelConfig, seed: int) -> PeftModel:
    """The model with LoRA factors of the settings; B = 0, A from the seed.

    Raises:
        ConfigError: if no layer is named by `lora_targets`, or none has so high a rank.
    """
    _check_rank(base, config.lora_rank)
    targets, linear = config.lora_targets, linear_names(base)
    _check_names(base, config, linear)
    if targets == ALL_LINEAR:
        with whole_in_passes(base, decoder_layers(base)):
            targets = plain_linear_layers(base)
        if not targets:
            raise ConfigError(
                f"model.lora_targets: {ALL_LINEAR} finds no layer in this "
                f"{base.config.model_type} model that a pass calls once: those that run more than "
                "once (a model that goes through its layers again) have no LoRA gradient per "
                "sample; choose another model.path"
            )
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,  # pyright: ignore[reportArgumentType] # any number will do
        use_rslora=config.rslora,
        target_modules=targets if isinstance(targets, str) else list(targets),
        exclude_modules=_excluded(base, config),
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(seed)
    try:
        return get_peft_model(base, lora)
    except (ValueError, re.error) as error:
        raise ConfigError(
            f"model.lora_targets: {config.lora_targets}: {str(error).rstrip('.')}. {_there(linear)}"
        ) from error


def read_adapter(folder: str, key: str = "model.adapter") -> LoraConfig:
    """The settings of a PEFT adapter's folder or hub name.

    Raises:
        ConfigError: if there is none, or it is more than LoRA factors of linear layers.
    """
    place = adapter_place(folder, key)
    try:
        adapter = PeftConfig.from_pretrained(place)
    except Exception as error:  # of as many kinds as there are broken files
        raise ConfigError(
            f"{key}: no PEFT adapter at {folder!r} (a folder with {ADAPTER_CONFIG}): {error}"
        ) from error
    wrong = _no_number(adapter) if isinstance(adapter, LoraConfig) else None
    if wrong:
        raise ConfigError(f"{key}: {ADAPTER_CONFIG} at {folder!r} sets {wrong}, no number above 0")
    if not isinstance(adapter, LoraConfig):
        wrong = f"is of kind {adapter.peft_type}"
    elif adapter.use_dora:
        wrong = "is DoRA (use_dora)"
    elif adapter.bias != "none" or adapter.lora_bias:
        wrong = f"trains biases (bias: {adapter.bias})"
    elif isinstance(start := adapter.init_lora_weights, str) and start.startswith(CHANGES_BASE):
        wrong = f"belongs to base weights that its making has changed (init_lora_weights: {start})"
    else:
        wrong = next((f"sets {f}" for f in FIELDS_REFUSED if getattr(adapter, f, None)), None)
    if wrong or not isinstance(adapter, LoraConfig):
        raise ConfigError(
            f"{key}: {folder!r} {wrong}; only LoRA factors of linear layers have per-sample "
            "gradients: merge it into its base (launchers/merge.py), and start a fresh adapter"
        )
    adapter.lora_dropout = 0.0
    return adapter


def _no_number(adapter: LoraConfig) -> str | None:
    """What of an adapter's sizes and scales is no number above 0, with its value."""
    sizes = {"r": adapter.r, "lora_alpha": adapter.lora_alpha}
    for field in ("rank_pattern", "alpha_pattern"):
        sizes |= {f"{field}.{key}": size for key, size in getattr(adapter, field).items()}
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int | float) or not size > 0:
            return f"{name}: {size!r}"
    return None


def adapter_place(folder: str, key: str = "model.adapter") -> str:
    """Where to read an adapter from: its folder, that of a hub name in the hub's cache, or the name
    itself, of which PEFT asks the hub, on every rank and for each file.

    Raises:
        ConfigError: for a path that is none, or a folder that holds no adapter.
    """
    place = folder_named(key, folder)
    if place is None:
        return str(adapter_snapshot(folder) or folder)
    if not (place / ADAPTER_CONFIG).is_file():
        inside = sorted(place.glob(f"*/{ADAPTER_CONFIG}"))
        meant = f"; did you mean {Path(folder) / inside[0].parent.name}?" if inside else ""
        raise ConfigError(f"{key}: no PEFT adapter at {folder!r}: no {ADAPTER_CONFIG}{meant}")
    return str(place)


def continued_adapter(base: PreTrainedModel, folder: str, shapes_only: bool = False) -> PeftModel:
    """The model with the adapter of a folder, trainable: its own rank, scale and targets.

    shapes_only: its weights stay unread.

    Raises:
        ConfigError: if it is no adapter of this model.
    """
    adapter = read_adapter(folder)
    adapter.inference_mode = False
    try:
        policy = get_peft_model(base, adapter)
    except ValueError as error:
        raise ConfigError(f"model.adapter: {folder!r} does not fit model.path: {error}") from error
    if not shapes_only:
        _load_factors(policy, folder, POLICY)
    return policy


def add_reference(policy: PeftModel, folder: str, shapes_only: bool = False) -> None:
    """Put the adapter of a folder on the policy once more, frozen, as the KL term's reference."""
    adapter = read_adapter(folder)
    adapter.inference_mode = True
    policy.add_adapter(REFERENCE, adapter)
    if not shapes_only:
        _load_factors(policy, folder, REFERENCE)
    for name, parameter in policy.named_parameters():
        if f".{REFERENCE}." in name:
            parameter.requires_grad_(False)


@contextmanager
def reference_policy(policy: PeftModel) -> Iterator[PeftModel]:
    """Inside, the model is the reference, without gradients: the base with the adapter off, or
    the adapter that the run started from."""
    with torch.no_grad():
        if REFERENCE not in policy.peft_config:
            with policy.disable_adapter():
                yield policy
            return
        with active_adapter(policy, REFERENCE, then=POLICY):
            yield policy


def _load_factors(policy: PeftModel, folder: str, name: str) -> None:
    place = adapter_place(folder)
    _check_weights(Path(place), folder)
    try:
        weights = load_peft_weights(place, device="cpu")
        result = set_peft_model_state_dict(policy, weights, adapter_name=name)
    except Exception as error:
        told = "; ".join(line.strip() for line in str(error).splitlines()[:2])
        raise ConfigError(
            f"model.adapter: the weights at {folder!r} do not fit model.path: {told}"
        ) from error
    missing = [key for key in result.missing_keys if f".{name}." in key]
    if missing or result.unexpected_keys:
        raise ConfigError(
            f"model.adapter: {folder!r} is of another base model: it lacks {len(missing)} factors "
            f"of model.path's layers and has {len(result.unexpected_keys)} of others "
            f"({', '.join([*missing, *result.unexpected_keys][:2])})"
        )


def _check_weights(place: Path, folder: str) -> None:
    """Raises `ConfigError` for a folder without weights, of which PEFT would ask the hub, and for
    a file that is not whole."""
    files = [place / name for name in ADAPTER_WEIGHTS if (place / name).is_file()]
    if place.is_dir() and not files:
        raise ConfigError(
            f"model.adapter: the adapter at {folder!r} has no weights "
            f"({' or '.join(ADAPTER_WEIGHTS)}); get the folder whole"
        )
    if files and (told := problem(files[0])):
        raise ConfigError(f"model.adapter: {files[0]} {told}")


def _excluded(base: PreTrainedModel, config: ModelConfig) -> str | None:
    """A regular expression of the layers that get no factors: what is not the language model
    (vision and audio towers), and the settings' own."""
    patterns = [rf"{re.escape(name)}(\..*)?" for name in outside_the_decoder(base)]
    own = config.lora_exclude
    if isinstance(own, str):
        patterns.append(own)
    else:
        patterns += [rf"(.*\.)?{re.escape(name)}(\..*)?" for name in own]
    return "|".join(f"({pattern})" for pattern in patterns) or None


def _check_names(base: PreTrainedModel, config: ModelConfig, linear: list[str]) -> None:
    """Refuse a name among targets and exclusions that no layer has: of several, PEFT passes over
    those. (The default names do not all have to be there.)"""
    targets, excluded = config.lora_targets, config.lora_exclude
    names = {"lora_exclude": [excluded] if isinstance(excluded, str) else excluded}
    if not isinstance(targets, str) and targets != ModelConfig().lora_targets:
        names["lora_targets"] = targets
    layers = [f".{name}" for name, _ in base.named_modules()]
    for key, given in names.items():
        for name in given:
            if isinstance(excluded, str) and key == "lora_exclude":
                there = any(_matches(key, name, layer[1:]) for layer in layers)
            else:
                there = any(layer.endswith(f".{name}") for layer in layers)
            if not there:
                raise ConfigError(
                    f"model.{key}: no layer of this {base.config.model_type} model has the name "
                    f"{name!r}. {_there(linear)}"
                )


def _matches(key: str, pattern: str, name: str) -> bool:
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as error:
        raise ConfigError(f"model.{key}: {pattern!r} is no regular expression: {error}") from error


def _there(linear: list[str]) -> str:
    return (
        f"The linear layers of its language model: {', '.join(linear)}; or write {ALL_LINEAR} for "
        "all of them"
    )


def _check_rank(base: nn.Module, rank: int) -> None:
    """Refuse a rank that no layer has, before its factors fill the memory."""
    linear = [module for module in base.modules() if isinstance(module, nn.Linear)]
    full = max((min(module.in_features, module.out_features) for module in linear), default=rank)
    if rank > full:
        raise ConfigError(
            f"model.lora_rank: {rank} is more than the rank of any layer, {full}; lower it"
        )
