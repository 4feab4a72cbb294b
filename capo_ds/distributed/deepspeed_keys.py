"""DeepSpeed's own verdict on its JSON, had before anything starts and told by file and key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError

from capo_ds.config.reading import WORD, closest, first_lower

MICRO_BATCH = {"train_micro_batch_size_per_gpu": 1}  # without one DeepSpeed refuses any JSON
# Whatever the reading of a section raises: DeepSpeed's own DeepSpeedConfigError is an Exception.
REFUSALS = (ValueError, TypeError, AttributeError, KeyError, AssertionError)


class _Noting(dict[str, Any]):
    """A JSON object that notes in `asked` which keys it was asked for; its copies do as well."""

    def __init__(self, settings: dict[str, Any]):
        super().__init__(settings)
        self.asked: set[str] = set()

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def keys(self) -> Any:
        return self  # DeepSpeed asks `key in settings.keys()`


def refusals(settings: dict[str, Any]) -> tuple[str, ...]:
    """What DeepSpeed would refuse, one line for each key; none if it takes the settings."""
    return _verdict(json.dumps(settings))[0]


def ignored(settings: dict[str, Any]) -> tuple[str, ...]:
    """The keys that DeepSpeed passes over without a word, each with the one that may be meant."""
    return _verdict(json.dumps(settings))[1]


@cache
def _verdict(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    settings = json.loads(text)
    error, asked = _read(settings)
    if error is not None:
        return tuple(_told(settings, error)), ()
    return (), tuple(
        f"{key!r} is no key of DeepSpeed's, which ignores it{_meant(key, asked)}"
        for key in settings
        if key not in asked
    )


def _read(settings: dict[str, Any]) -> tuple[Exception | None, set[str]]:
    """What DeepSpeed raises on them, and which keys it knows."""
    from capo_ds.distributed.zero import import_deepspeed

    import_deepspeed()
    from deepspeed.runtime import constants
    from deepspeed.runtime.config import DeepSpeedConfig, DeepSpeedConfigError
    from deepspeed.utils import logger

    noting = _Noting(json.loads(json.dumps(settings)) | MICRO_BATCH)  # it changes what it reads
    logger.disabled = True  # it tells of former keys again when the engine starts
    try:
        DeepSpeedConfig(noting)
    except (*REFUSALS, DeepSpeedConfigError) as error:
        return error, noting.asked
    finally:
        logger.disabled = False
    # Some are read by the engine alone.
    return None, noting.asked | {
        word for name, word in vars(constants).items() if name.isupper() and isinstance(word, str)
    }


def _told(settings: dict[str, Any], error: Exception) -> Iterator[str]:
    """One line for each thing that it refuses."""
    alone = {key: _read({key: value})[0] for key, value in settings.items()}
    section = next((key for key, other in alone.items() if str(other) == str(error)), None)
    if section and isinstance(error, AttributeError | TypeError):
        yield f"{section}: bad value {settings[section]!r}; write an object, {{...}}"
        return
    if not isinstance(error, ValidationError):
        yield (f"{section}: " if section else "") + (str(error) or type(error).__name__)
        return
    told = dict.fromkeys(_path(problem["loc"]) for problem in error.errors())
    for problem in error.errors():
        path = _path(problem["loc"])
        if path not in told:  # of a value that may be of two types, what the first says
            continue
        del told[path]
        key = ".".join((section or error.title, *path))
        if problem["type"] == "extra_forbidden":
            siblings = set(_keys(_model(error.title), path[:-1]))
            near = _meant(path[-1], siblings)
            yield f"{key}: DeepSpeed has no such key{near or '; remove it'}"
        elif not path:
            yield f"{key}: {first_lower(problem['msg'])}"
        else:
            yield f"{key}: bad value {problem['input']!r}; {first_lower(problem['msg'])}"


def _path(location: tuple[int | str, ...]) -> tuple[str, ...]:
    return tuple(map(str, location))


def _meant(key: str, keys: set[str]) -> str:
    close = closest(key, sorted(keys), WORD)
    return f"; did you mean {close}?" if close else ""


def _model(title: str) -> type[BaseModel] | None:
    """DeepSpeed's section of that name."""
    from deepspeed.runtime.config_utils import DeepSpeedConfigModel

    found = list(DeepSpeedConfigModel.__subclasses__())
    for model in found:
        if model.__name__ == title:
            return model
        found += model.__subclasses__()
    return None


def _keys(model: type[BaseModel] | None, path: tuple[str, ...]) -> Iterator[str]:
    """The keys of a section, or of one within it, that are not former ones."""
    for name, field in model.model_fields.items() if model else ():
        extra = field.json_schema_extra
        if not path and not (isinstance(extra, dict) and extra.get("deprecated")):
            yield field.alias or name
        elif path and path[0] in (name, field.alias):
            inner = (field.annotation, *getattr(field.annotation, "__args__", ()))
            for part in inner:
                if isinstance(part, type) and issubclass(part, BaseModel):
                    yield from _keys(part, path[1:])
