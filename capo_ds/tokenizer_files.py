"""Whether a model's folder has its tokenizer's files: transformers makes an empty tokenizer where
some kinds of model lack theirs, and of others tells of packages to install."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from capo_ds.config import ConfigError
from capo_ds.hub import TOKENIZERS

NO_TOKENIZER = "no tokenizer at"
PAIR = {"vocab_file": "vocab.json", "merges_file": "merges.txt"}  # neither serves alone
NO_NAMES: dict[str, str] = {}


def has_tokenizer(folder: Path, names: Mapping[str, str] = NO_NAMES) -> bool:
    """Whether a tokenizer's file is there, of a usual name or of these.

    names: by kind of file, as a tokenizer's `vocab_files_names`.
    """
    found = {file.name for name in (*names.values(), *TOKENIZERS) for file in folder.glob(name)}
    found -= {"tokenizer_config.json"}
    pair = {names["vocab_file"], names["merges_file"]} if PAIR.keys() <= names.keys() else set()
    return bool(found - pair or (pair and pair <= found))


def stands_alone(folder: Path) -> bool:
    """Whether it holds a tokenizer, maybe one of bytes, without a model."""
    tokenizer = has_tokenizer(folder) or (folder / "tokenizer_config.json").is_file()
    return tokenizer and not (folder / "config.json").is_file()


def incomplete(path: str, folder: Path, names: Mapping[str, str] = NO_NAMES) -> ConfigError:
    """names: of its class, if it is known."""
    usual = ("tokenizer.json", *(names or PAIR).values(), *(() if names else ("*.model",)))
    found = [name for name in dict.fromkeys(usual) if any(folder.glob(name))]
    return ConfigError(
        f"model.path: {NO_TOKENIZER} {path!r}: looked for {', '.join(dict.fromkeys(usual))}, and "
        f"found {f'only {found[0]}' if found else 'none'}; get the folder whole, or copy them from "
        "the model that it was made of"
    )


def sentencepiece_model(folder: Path) -> Path | None:
    """A tokenizer's file that cannot be read for lack of the package; transformers names others."""
    if find_spec("sentencepiece") or (folder / "tokenizer.json").is_file():
        return None
    return next(folder.glob("*.model"), None)
