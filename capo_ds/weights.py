"""Reading a model's folder: tokenizer and base weights, and what can be wrong with them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from capo_ds.causality import check_kind
from capo_ds.config import BUILTIN_MODELS, ConfigError, ModelConfig, folder_named
from capo_ds.distributed.launch import tell
from capo_ds.hub import ADAPTER_CONFIG, whole_snapshot
from capo_ds.quantization import (
    RUNS,
    STORED_AS,
    check_read,
    four_bits,
    keep_one_arithmetic,
    prepare_quantised,
)
from capo_ds.tokenizer_files import (
    NO_TOKENIZER,
    PAIR,
    has_tokenizer,
    incomplete,
    sentencepiece_model,
    stands_alone,
)
from capo_ds.weight_files import check_shards, problem

WEIGHTS = (".safetensors", ".bin", ".model")
WHOLE_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
MODEL_FILES = ("config.json", "generation_config.json")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")  # of some, 20 MiB to read
NAMED = 3  # of the weights that are missing, how many are named


def load_tokenizer(model: ModelConfig | str) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with a padding token. Raises `ConfigError` if it cannot be loaded.

    model: the settings, or the path alone.
    """
    config = ModelConfig(path=model) if isinstance(model, str) else model
    location = find_location(config)
    check_folder(config.path, location, MODEL_FILES + TOKENIZER_FILES)
    folder = _on_disk(location)
    if folder and not stands_alone(folder):
        _read_config(config, location)
    try:
        tokenizer = AutoTokenizer.from_pretrained(location, **_source(config))
    except Exception as error:  # of as many kinds as there are formats
        raise _unreadable(config, NO_TOKENIZER, location, error) from error
    names = tokenizer.vocab_files_names  # a tokenizer of bytes has none
    if folder and names and not has_tokenizer(folder, names):  # transformers makes an empty one
        raise incomplete(config.path, folder, names)
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"model.path: the tokenizer of {config.path!r} has no end-of-sequence token"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base_model(config: ModelConfig, empty: bool = False) -> PreTrainedModel:
    """The causal LM without adapter, in evaluation mode: ratios need a deterministic policy.

    empty: on torch's meta device, for a rank that another will send the weights; they are looked at
    all the same, and read where they come quantised, or are to be.

    Raises:
        ConfigError: naming the file or the settings, if it cannot be loaded whole.
    """
    location = find_location(config)
    check_folder(config.path, location, MODEL_FILES)
    try:
        model, loaded = _read_weights(config, location, empty)
    except (ConfigError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # of as many kinds as there are formats
        raise _unreadable(config, "cannot load", location, error) from error
    _check_shapes(config, loaded["mismatched_keys"])
    _check_complete(config, model, loaded["missing_keys"])
    check_read(config, loaded["unexpected_keys"])
    _tell_of_adapter(config, location)
    keep_one_arithmetic(model, config)
    return model.eval()


def _read_weights(
    config: ModelConfig, location: Path | str, empty: bool
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model, and what transformers tells of its reading."""
    arguments = _source(config)
    if config.attn_implementation:
        arguments["attn_implementation"] = config.attn_implementation
    if config.load_in_4bit:
        arguments["quantization_config"] = four_bits(config)
    architecture = _read_config(config, location)
    _as_a_run_needs_it(architecture)
    stored = prepare_quantised(architecture, config)
    if empty and not (stored or config.load_in_4bit):
        arguments["device_map"] = "meta"
    with _without_adapter(location) as place:
        # A pair, with output_loading_info.
        model, loaded = AutoModelForCausalLM.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
            place,
            config=architecture,
            dtype=getattr(torch, config.dtype),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused with their names
            **arguments,
        )
    given = config.path in BUILTIN_MODELS or folder_named("model.path", config.path)
    model.name_or_path = model.config.name_or_path = str(location) if given else config.path
    setattr(model, STORED_AS, stored)
    return model, loaded


def _check_shapes(config: ModelConfig, mismatched: Iterable[Sequence[Any]]) -> None:
    """Raises `ConfigError` where tensors are of other shapes than config.json says.

    mismatched: names, with the shapes of the file and of the model.
    """
    found = sorted((name, tuple(file), tuple(model)) for name, file, model in mismatched)
    if found:
        (name, file, model), count = found[0], len(found)
        raise ConfigError(
            f"model.path: of the weights at {config.path!r} {count} have another shape than "
            f"config.json says ({name}: {file}, not {model}): they are not of one model; get the "
            "folder whole"
        )


def _check_complete(config: ModelConfig, model: PreTrainedModel, missing: Iterable[str]) -> None:
    """Raises `ConfigError` where tensors of the model were not read."""
    if names := sorted(missing):
        raise ConfigError(
            f"model.path: the weights at {config.path!r} lack {len(names)} of the tensors of a "
            f"{type(model).__name__} ({', '.join(names[:NAMED])}, ...): files are missing, or "
            "config.json is of another model; get the folder whole"
        )


def _tell_of_adapter(config: ModelConfig, location: Path | str) -> None:
    """Of an adapter's files beside whole weights, where the settings name no adapter."""
    folder = _on_disk(location)
    if folder and (folder / ADAPTER_CONFIG).is_file() and not config.adapter:
        tell(
            f"model.path: {config.path!r} holds an adapter's files beside the whole weights; the "
            "weights are taken as they are, without it. If it is not merged into them, set "
            "model.adapter to the same folder; if it is, move its files away: transformers puts "
            "it on once more"
        )


def read_architecture(config: ModelConfig) -> PretrainedConfig:
    """config.json, whether weights are beside it or not. Raises `ConfigError`."""
    return _read_config(config, find_location(config))


def find_location(config: ModelConfig) -> Path | str:
    """Where to load from: a folder wherever there is one, the cache's of a name of the hub.

    Raises:
        ConfigError: for what looks like a folder and is none.
    """
    path = config.path
    if path in BUILTIN_MODELS:
        return BUILTIN_MODELS[path]
    return folder_named("model.path", path) or whole_snapshot(path, config.revision) or path


def check_folder(path: str, location: Path | str, json_files: Sequence[str]) -> None:
    """Refuse a folder whose files are not what their names say, naming the file.

    Of a hub name, the copy in the cache, if there is one. Of weights it reads headers only.

    json_files: those to read as well.
    """
    folder = _on_disk(location)
    if folder is None:
        return
    if (folder / ADAPTER_CONFIG).is_file() and not _is_whole(folder):
        if told := problem(folder / ADAPTER_CONFIG):
            raise ConfigError(f"model.path: {folder / ADAPTER_CONFIG} {told}")
        base = json.loads((folder / ADAPTER_CONFIG).read_text()).get("base_model_name_or_path")
        raise ConfigError(
            f"model.path: {path!r} is an adapter; set model.adapter to it and model.path to its "
            f"base model, {base!r}"
        )
    for file in sorted(folder.iterdir()):
        if (file.suffix in WEIGHTS or file.name in json_files) and (told := problem(file)):
            raise ConfigError(f"model.path: {file} {told}")
    for index in folder.glob("*.index.json"):
        check_shards(index)


def _is_whole(folder: Path) -> bool:
    """Whether it holds a model's own weights, whatever else."""
    return (folder / "config.json").is_file() and any(
        file for pattern in WHOLE_WEIGHTS for file in folder.glob(pattern)
    )


@contextmanager
def _without_adapter(location: Path | str) -> Iterator[Path | str]:
    """Where to load the weights from as they are: transformers puts an adapter whose files are
    beside them on the model, so then a folder of links to the others."""
    folder = _on_disk(location)
    if folder is None or not (folder / ADAPTER_CONFIG).is_file():
        yield location
        return
    with TemporaryDirectory(prefix="capo_ds-") as links:
        for file in folder.iterdir():
            if not file.name.startswith("adapter_"):
                (Path(links) / file.name).symlink_to(file.resolve())
        yield Path(links)


def _read_config(config: ModelConfig, location: Path | str) -> PretrainedConfig:
    """Raises `ConfigError` if it cannot be read, or is not that of a causal language model."""
    if isinstance(location, Path) and not (location / "config.json").is_file():
        raise ConfigError(
            f"model.path: {config.path!r} holds no config.json; give the folder of a whole model"
        )
    try:
        architecture = AutoConfig.from_pretrained(location, **_source(config))
    except Exception as error:  # of as many kinds as there are configs
        raise _unreadable(config, "cannot load", location, error) from error
    check_kind(architecture, config.path)
    return architecture


def _as_a_run_needs_it(architecture: PretrainedConfig) -> None:
    """Without dropout, in a warm-up, whose model is in training mode, too; and with outputs by
    name, of which no more are kept than the logits. Nested configs included."""
    architecture.return_dict = True
    architecture.output_hidden_states = architecture.output_attentions = False
    for name, value in list(vars(architecture).items()):
        if isinstance(value, PretrainedConfig):
            _as_a_run_needs_it(value)
        elif "drop" in name and isinstance(value, float):
            setattr(architecture, name, 0.0)


def _source(config: ModelConfig) -> dict[str, Any]:
    """Never None for `trust_remote_code`: transformers would ask on stdin."""
    return {"trust_remote_code": config.trust_remote_code, "revision": config.revision or "main"}


def _unreadable(
    config: ModelConfig, what: str, location: Path | str, error: Exception
) -> ConfigError:
    text = f"{str(error).strip() or type(error).__name__}"
    start = f"model.path: {what} {config.path!r}"
    if config.revision:
        start += f", model.revision {config.revision!r}"
    if "trust_remote_code" in text:
        return ConfigError(
            f"{start}: it brings code of its own. Read that code; to run it set "
            "model.trust_remote_code to true, and model.revision to the commit that you have read"
        )
    if "attn_implementation" in text or (
        config.attn_implementation and config.attn_implementation in text
    ):
        return ConfigError(f"model.attn_implementation: {config.attn_implementation!r}: {text}")
    folder = _on_disk(location)
    if folder and what == NO_TOKENIZER and (file := sentencepiece_model(folder)):
        return ConfigError(
            f"{start}: {file.name} there is a SentencePiece model, which needs that package: "
            "pip install sentencepiece"
        )
    known = not config.trust_remote_code  # else its files may have any name
    if folder and what == NO_TOKENIZER and known and not has_tokenizer(folder, PAIR):
        return incomplete(config.path, folder)
    if isinstance(location, Path) and what != NO_TOKENIZER and not _is_whole(location):
        return ConfigError(
            f"{start}: no weights are there ({' or '.join(WHOLE_WEIGHTS)}); get the folder whole"
        )
    if folder and (folder / "config.json").is_file():
        settings = json.loads((folder / "config.json").read_text()).get("quantization_config")
        if settings:
            method = settings.get("quant_method", "an unknown way")
            return ConfigError(
                f"{start}: its weights are quantised ({method}, quantization_config in "
                f"config.json), which cannot be read here: {text}; choose the unquantised model; "
                f"{RUNS}"
            )
    return ConfigError(f"{start}: {type(error).__name__}: {text}")


def _on_disk(location: Path | str) -> Path | None:
    if isinstance(location, Path):
        return location
    try:
        cached = try_to_load_from_cache(location, "config.json")
    except HFValidationError:  # no name of the hub; the loader says so
        return None
    return Path(cached).parent if isinstance(cached, str) else None
