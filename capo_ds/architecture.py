"""What a run must know of a model's architecture, whatever its config calls it."""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from typing import Any, cast

import torch
from torch import Tensor, is_grad_enabled, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from capo_ds.config import ConfigError

CONTEXT_NAMES = ("max_position_embeddings", "max_seq_len", "seq_length", "context_length")
# Kinds of rotary positions whose frequencies depend on the longest sequence of the batch.
SWITCHING_POSITIONS = ("longrope", "dynamic")
PLAIN_LINEAR = ("Linear", "Conv1D", "Linear4bit", "Linear8bitLt", "FalconLinear")
NOT_CALLED = ("dt_proj",)
EXPERT_NAMES = ("gate_proj", "up_proj", "down_proj", "w1", "w2", "w3", "gate")
FEW_TOKENS = 4
CACHE_NAMES = ("past_key_values", "cache_params", "state")


def text_config(config: PretrainedConfig) -> PretrainedConfig:
    """The part of a config that describes the language model: of composite ones the nested."""
    return config.get_text_config(decoder=True)


def context_of(config: PretrainedConfig) -> int:
    """The longest sequence, in tokens, that the model's positions are made for, and up to which
    they do not depend on the other rows of a batch (see `switch_length`)."""
    text = text_config(config)
    lengths = [getattr(text, name, None) for name in CONTEXT_NAMES]
    known = [length for length in lengths if isinstance(length, int) and length > 0]
    return min([*known[:1], switch_length(config) or sys.maxsize])


def switch_length(config: PretrainedConfig) -> int | None:
    """Tokens beyond which a batch's longest row changes the positions of all its rows; or None.

    Long/short RoPE (Phi-3) takes other frequencies for the whole batch, and so does the sampler's
    cache hold keys of both kinds; dynamic NTK RoPE stretches them with the length.
    """
    text = text_config(config)
    parameters = getattr(text, "rope_parameters", None) or {}
    kinds = [parameters, *(kind for kind in parameters.values() if isinstance(kind, dict))]
    lengths = []
    for kind in kinds:
        if kind.get("rope_type") in SWITCHING_POSITIONS:
            original = kind.get("original_max_position_embeddings")
            original = original or getattr(text, "original_max_position_embeddings", None)
            lengths.append(original or text.max_position_embeddings)
    return min(lengths, default=None)


def check_positions(config: PretrainedConfig, longest: int) -> None:
    """Raises `ConfigError` if sequences of so many tokens (prompt and response) may change the
    positions of their neighbours; see `switch_length`."""
    switch = switch_length(config)
    if switch is not None and longest > switch:
        raise ConfigError(
            f"model.path: the rotary positions of this {config.model_type} model are others for a "
            f"whole batch once its longest row passes {switch} tokens, and prompt and response "
            f"may be {longest}: a sample's probabilities would depend on its neighbours. Lower "
            "rollout.max_new_tokens, or rollout.max_prompt_tokens to leave long prompts out"
        )


def decoder_name(model: Any) -> str:
    """Name of the submodule that is the language model without its output layer."""
    decoder = model.get_decoder()
    if decoder is model.get_output_embeddings():  # which ModernBERT's decoder calls its decoder
        decoder = model.base_model
    return next((name for name, module in model.named_modules() if module is decoder), "")


def outside_the_decoder(model: PreTrainedModel) -> list[str]:
    """Names of the submodules that text does not pass: vision and audio towers, projectors.

    They are what lies beside the language model on the way down to it.
    """
    names, module, prefix = [], model, ""
    head = model.get_output_embeddings()
    for step in filter(None, decoder_name(model).split(".")):
        names += [
            prefix + name
            for name, child in module.named_children()
            if name != step and child is not head
        ]
        module, prefix = getattr(module, step), f"{prefix}{step}."
    return names


def linear_names(model: PreTrainedModel) -> list[str]:
    """Last parts of the names of the language model's linear layers."""
    inside = decoder_name(model)
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and name.startswith(inside)
        }
    )


def plain_linear_layers(model: PreTrainedModel) -> list[str]:
    """Whole names of the language model's layers that are linear and nothing more.

    Not the output layer; not routers; not what PEFT takes for routed experts (their names are
    those of dense and shared MLPs too); not those that state-space layers use without calling; not
    those that a pass calls twice or never (layers that share keys with others: Gemma-3n, Zamba2);
    nor those that get no gradient from a few tokens, of which a pass takes a ranking alone
    (DeepSeek-V3.2's indexer), or which act on more tokens (DeepSeek-V4's compressors).

    Raises:
        ConfigError: if a pass through the model fails.
    """
    inside, head = decoder_name(model), model.get_output_embeddings()
    left_out: set[str] = set(NOT_CALLED)
    if any("experts" in name for name, _ in model.named_parameters()):
        left_out |= set(EXPERT_NAMES)
    if any("A_log" in name for name, _ in model.named_parameters()):
        left_out.add("out_proj")
    plain = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and type(module).__name__ in PLAIN_LINEAR
        and name.startswith(inside)
        and name.rpartition(".")[2] not in left_out
        and module is not head
    }
    felt = _felt_once(model, plain.values())
    return [name for name, module in plain.items() if module in felt]


def _felt_once(model: PreTrainedModel, modules: Iterable[nn.Module]) -> set[nn.Module]:
    """Those of the modules that a pass over a few tokens calls once, and whose output the logits
    can be differentiated by. No backward pass is made, and nothing is kept for one."""
    calls: Counter[nn.Module] = Counter()
    added: dict[Tensor, nn.Module] = {}

    def add_zero(module: nn.Module, _: Any, output: Tensor) -> Tensor:
        calls.update([module])
        zero = torch.zeros((), dtype=output.dtype, device=output.device, requires_grad=True)
        added[zero] = module
        return output + zero

    hooks = [module.register_forward_hook(add_zero) for module in modules]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        model.requires_grad_(False)
        nothing = saved_tensors_hooks(lambda _: None, _never)  # weights of ZeRO 3 must go
        with first_pass(model), torch.enable_grad(), nothing:
            ids = torch.arange(FEW_TOKENS, device=model.device)[None]
            told: dict[str, Any] = {"use_cache": False}
            if ids.is_meta:  # a mask must then not be told from the numbers
                told["attention_mask"] = torch.ones_like(ids)
            logits = model(input_ids=ids, **taken(model, **told)).logits
    finally:
        for hook in hooks:
            hook.remove()
        for parameter in trained:
            parameter.requires_grad_(True)
    felt = {added[leaf] for leaf in _leaves(logits) if leaf in added}
    return {module for module in felt if calls[module] == 1}


def _never(_: Any) -> Tensor:
    raise AssertionError("no backward pass is made")


def _leaves(value: Tensor) -> Iterator[Tensor]:
    """The tensors at the ends of a value's autograd graph."""
    nodes, seen = [value.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            yield leaf
        nodes += [before for before, _ in node.next_functions]


@contextmanager
def refused(told: Callable[[], str]) -> Iterator[None]:
    """Whatever is raised inside, but for a lack of memory, is a `ConfigError`, which begins with
    what `told` says."""
    try:
        yield
    except (ConfigError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        raise ConfigError(f"{told()}: {type(error).__name__}: {error}") from error


def first_pass(model: nn.Module) -> AbstractContextManager[None]:
    """Inside, a pass that fails is `refused`."""
    return refused(lambda: f"model.path: a first pass through this {_type(model)} model fails")


def forward_takes(model: nn.Module) -> Callable[[str], bool]:
    """Whether the model's forward pass takes an argument of a name."""
    parameters = inspect.signature(model.forward).parameters
    anything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    return lambda name: name in parameters or (anything and name == "position_ids")


def taken(model: nn.Module, **arguments: Any) -> dict[str, Any]:
    """Those of the arguments that the model's forward pass takes."""
    takes = forward_takes(model)
    return {name: value for name, value in arguments.items() if takes(name)}


def cache_name(model: nn.Module) -> str:
    """What the model calls its cache, as an argument and in its output.

    Raises:
        ConfigError: if it has none: its forward pass cannot go on where another has ended.
    """
    takes = forward_takes(model)
    for name in CACHE_NAMES:
        if takes(name):
            return name
    raise ConfigError(
        f"model.path: {_type(model)} models decode without a cache, which is not "
        "supported; choose another model"
    )


def state_is_in_the_layers(model: nn.Module) -> bool:
    """Whether decoding keeps part of its state in the modules (RecurrentGemma), not in a cache."""
    return any(hasattr(module, "_setup_cache") for module in model.modules())


def begin_state(model: Any, rows: int, device: torch.device, dtype: torch.dtype) -> DynamicCache:
    """Of a model whose state is in its layers: clear it, and return the cache of its attention
    layers, which its forward pass takes but does not return."""
    model._setup_cache(model.config, rows, device, dtype)
    return DynamicCache(config=model.config)


def checkpoint_layers(model: nn.Module) -> None:
    """Make each layer of the language model recompute its activations in the backward pass.

    transformers' own way works in training mode only, which also turns on whatever else a model
    does in training: dropout, noise in the router, layers left out. Here the mode stays what it
    is; a pass without gradients (decoding with its cache) is not touched.

    Raises:
        ConfigError: if the model's layers cannot be told.
    """
    for layer in layers_for(model, "model.gradient_checkpointing"):
        layer.forward = _recomputed(layer.forward)


def layers_for(model: nn.Module, key: str) -> list[nn.Module]:
    """The layers of the language model, for what the key asks. Raises `ConfigError` if they cannot
    be told."""
    layers = list(decoder_layers(model))
    if not layers:
        raise ConfigError(f"{key}: not supported for {_type(model)} models; set it to false")
    return layers


def _type(model: nn.Module) -> str:
    return cast(PretrainedConfig, model.config).model_type


def decoder_layers(model: nn.Module) -> Iterator[nn.Module]:
    """The outermost layers that are made for it, or else the longest list of modules."""
    inside: tuple[str, ...] = ()
    decoder = model.get_submodule(decoder_name(model))
    for name, module in decoder.named_modules():
        if isinstance(module, GradientCheckpointingLayer) and not name.startswith(inside or "\0"):
            inside += (f"{name}.",)
            yield module
    if not inside:
        count = getattr(
            text_config(cast(PretrainedConfig, model.config)), "num_hidden_layers", None
        )
        for module in decoder.modules():
            if isinstance(module, nn.ModuleList) and len(module) == count:
                yield from module
                return


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not is_grad_enabled():
            return forward(*args, **kwargs)
        for name in CACHE_NAMES[:2]:  # else the second pass would write to it once more
            if kwargs.get(name) is not None:
                kwargs[name] = None
        # Nothing in the pass is random, so no generator's state needs to be kept.
        options = {"use_reentrant": False, "preserve_rng_state": False}
        return checkpoint(forward, *args, **options, **kwargs)

    return run


def position_ids(attention_mask: Tensor) -> Tensor:
    """Positions that start at 0 on the first real token of each left-padded row."""
    return (attention_mask.cumsum(1) - 1).clamp(min=0)
