"""What a config names on the hub: asked for once, before a library asks for minutes, and fetched by
one rank of each machine for all."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from capo_ds.config import BUILTIN_MODELS, Config, ConfigError
from capo_ds.distributed.launch import tell
from capo_ds.parts import built_in, ships
from capo_ds.weight_files import named_shards

# Of a model: weights of the first kind that is there, under transformers' names (repositories often
# have them in others' formats too), and all else that is small.
WEIGHTS = ("model*.safetensors", "adapter_model*.safetensors")
OLDER_WEIGHTS = ("pytorch_model*.bin", "adapter_model*.bin")
SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.py", "*.tiktoken")
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
SETTINGS = ("config.json", ADAPTER_CONFIG)
TOKENIZERS = ("tokenizer*", "*.model", "vocab*", "*.tiktoken")
OFFLINE = "HF_HUB_OFFLINE"  # of the Hugging Face libraries: use the cache alone
ASKED_OFFLINE = (OFFLINE, "TRANSFORMERS_OFFLINE")  # by the user, if not found so here
YES = ("1", "ON", "YES", "TRUE")
_found_offline = False


def fetch_once(config: Config, shapes_only: bool = False) -> None:
    """On the first rank of each machine, `check_hub` and download into the machine's cache what is
    not there; the others wait, and read it there. On all ranks, in the process group.

    shapes_only: of models alone, and no weights.
    Raises:
        ConfigError: on all ranks, of the first that fails.
    """

    def fetch() -> None:
        check_hub(config, shapes_only)
        if not _is_offline():
            for name in _hub_names(config, shapes_only):
                _fetch(config, *name, shapes_only)

    _by_one_rank(fetch)


def fetch_place(key: str, name: str) -> None:
    """`fetch_once` of one model or adapter."""
    _by_one_rank(lambda: check_place(key, name, fetch=True))


def _by_one_rank(fetch: Callable[[], None]) -> None:
    """Of each machine."""
    from capo_ds.distributed import comm

    first = os.environ.get("LOCAL_RANK", "0") == "0"
    with comm.together("fetching from the hub"):
        if first:
            fetch()
    offline = {machine for machine, is_offline in comm.gather(_here()) if is_offline}
    if not first and _here()[0] in offline:
        _use_cache_alone()


def _here() -> tuple[str, bool]:
    return socket.gethostname(), _is_offline()


def _fetch(
    config: Config, key: str, name: str, kind: str, subset: str | None, shapes_only: bool = False
) -> None:
    """What the loaders will ask for. Raises `ConfigError`."""
    import datasets

    with _fetching(key, name):
        if kind == "dataset":
            datasets.disable_progress_bars()
            datasets.load_dataset(name, subset)
        else:
            revision = config.model.revision if key == "model.path" else None
            _fetch_model(name, revision, shapes_only)


def _fetch_model(name: str, revision: str | None = None, shapes_only: bool = False) -> None:
    """Or an adapter."""
    import huggingface_hub

    for weights in [()] if shapes_only else [WEIGHTS, OLDER_WEIGHTS]:
        patterns = [*SMALL_FILES, *weights]
        folder = huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=patterns)
        if _any(Path(folder), weights):
            return


@contextmanager
def _fetching(key: str, name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of as many kinds as there are libraries below
        raise ConfigError(
            f"{key}: {name!r} cannot be fetched from the hub: {type(error).__name__}: {error}"
        ) from error


def _any(folder: Path, patterns: Iterable[str]) -> bool:
    return any(file for pattern in patterns for file in folder.glob(pattern))


def whole_snapshot(name: str, revision: str | None) -> Path | None:
    """The folder of a hub's model in the cache, with all that the loaders need; None if there is
    none, or a part lacks. Of a branch, as it was when it was last fetched.

    From a folder the loaders read files; of a name they ask the hub for each, on every rank.
    """
    folder = _snapshot(name, revision)
    if folder is None:
        return None
    try:
        named = set().union(*map(named_shards, folder.glob("*.index.json")))
    except ValueError:  # a file that is broken is fetched again
        return None
    whole = (
        _any(folder, (*WEIGHTS, *OLDER_WEIGHTS))
        and _any(folder, TOKENIZERS)
        and (folder / "config.json").exists()
        and all((folder / shard).exists() for shard in named)
    )
    return folder if whole else None


def adapter_snapshot(name: str) -> Path | None:
    """`whole_snapshot` of an adapter: its settings and its weights."""
    folder = _snapshot(name, None)
    whole = folder and (folder / ADAPTER_CONFIG).exists() and _any(folder, ADAPTER_WEIGHTS)
    return folder if whole else None


def _snapshot(name: str, revision: str | None) -> Path | None:
    """The folder of a hub name in the cache, whatever else lacks: of all its files, huggingface_hub
    would miss those that nobody has fetched, such as README.md."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            name, revision=revision, local_files_only=True, allow_patterns=[*SETTINGS]
        )
    except (HFValidationError, LocalEntryNotFoundError):
        return None
    return Path(folder)


def check_hub(config: Config, shapes_only: bool = False) -> None:
    """Ask the hub for every model and data set that is neither built in nor local.

    One attempt a name and no retries: where the hub cannot be reached, this process is told to
    use the cache of Hugging Face alone, which must then have them.

    Raises:
        ConfigError: a name that the hub does not know or does not give, no network and nothing in
            the cache, or a cache that cannot be written.
    """
    for key, name, kind, _ in _hub_names(config, shapes_only):
        check_name(key, name, kind)


def check_place(key: str, name: str, fetch: bool = False) -> None:
    """`check_hub` of one model or adapter, if it is neither built in nor here; fetch: and download
    it, so that it is asked for once."""
    from capo_ds.tasks.sources import is_local

    if name in BUILTIN_MODELS or is_local(os.path.expanduser(name)):
        return
    check_name(key, name, "model")
    if fetch and not _is_offline():
        with _fetching(key, name):
            _fetch_model(name)


def check_name(key: str, name: str, kind: str) -> None:
    """`check_hub` of one name. kind: of repository, model or dataset."""
    _check_words(key, name)
    cached = _is_cached(name, kind)
    parent = Path(name).parent
    # Adapters are mostly of runs here; a folder of models may well have an owner's name.
    if key.endswith("adapter") and not cached and parent.name and parent.is_dir():
        raise ConfigError(
            f"{key}: no folder {name!r}: {parent} is a folder here, without {Path(name).name!r} in "
            "it (nor has the hub's cache one of that name)"
        )
    if not _is_offline():
        _ask(key, name, kind, cached)
    if _is_offline() and not cached:
        asked = [n for n in ASKED_OFFLINE if os.environ.get(n, "").upper() in YES]
        asked = [] if _found_offline else asked
        connect = (
            f"unset {asked[0]}" if asked else "connect (HTTPS_PROXY, HF_ENDPOINT for a mirror)"
        )
        raise ConfigError(
            f"{key}: offline, and {name!r} is not in the cache {_cache()}; give a local folder "
            f"or file, set HF_HOME to a cache that has it, or {connect}"
        )
    if not cached:
        _check_writable(key, name)


def _hub_names(
    config: Config, models_only: bool = False
) -> Iterator[tuple[str, str, str, str | None]]:
    """Key, name, kind (of repository) and configuration of what is to come from the hub."""
    from capo_ds.tasks.sources import Source, is_local

    path = config.model.path
    if path not in BUILTIN_MODELS and not is_local(path):
        yield "model.path", path, "model", None
    adapter = config.model.adapter
    if adapter and not is_local(adapter):
        yield "model.adapter", adapter, "model", None
    if models_only:
        return
    wanted = []
    for number, entry in enumerate(config.task.entries):
        prefix = f"task.mixture.{number}" if config.task.mixture else "task"
        wanted.append((f"{prefix}.path", entry, entry.path))
        if entry.test_path:
            wanted.append((f"{prefix}.test_path", entry, entry.test_path))
    for number, entry in enumerate(config.evaluation.benchmarks):
        wanted.append((f"evaluation.benchmarks.{number}.path", entry, entry.path))
    for key, entry, given in wanted:
        task = built_in("task", entry.name) if ships("task", entry.name) else None
        place = (given or task.path) if isinstance(task, Source) else None
        if isinstance(task, Source) and place and not is_local(place):
            yield key, place, "dataset", entry.subset or task.subset


def _check_words(key: str, name: str) -> None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(
            f"{key}: {name!r} is no folder or file here, and no name of the hub (owner/name)"
        ) from error


def _ask(key: str, name: str, kind: str, cached: bool) -> None:
    import huggingface_hub
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{name}"
    try:
        huggingface_hub.auth_check(name, repo_type=kind)
    except errors.GatedRepoError as error:
        if not cached:
            raise ConfigError(
                f"{key}: {name!r} is gated: accept its terms at {page}, and log in by "
                "`hf auth login` or HF_TOKEN"
            ) from error
    except errors.RepositoryNotFoundError as error:
        if not cached:
            raise ConfigError(
                f"{key}: there is no {kind} {name!r} at {page}, or it is private; check the "
                "spelling, log in by `hf auth login` or HF_TOKEN, or give a local path"
            ) from error
    except errors.HfHubHTTPError:
        pass  # it is there and busy: the libraries' own retries are for that
    except Exception as error:  # of whatever HTTP library huggingface_hub stands on
        _go_offline(error)


def _go_offline(error: Exception) -> None:
    """Tell the Hugging Face libraries, imported or not, to use their caches alone."""
    from huggingface_hub import constants

    tell(f"offline: {constants.ENDPOINT} cannot be reached ({error})")
    _use_cache_alone()


def _use_cache_alone() -> None:
    from huggingface_hub import constants

    global _found_offline
    _found_offline = True
    os.environ[OFFLINE] = "1"
    constants.HF_HUB_OFFLINE = True
    if "datasets" in sys.modules:
        import datasets.config

        datasets.config.HF_HUB_OFFLINE = datasets.config.HF_DATASETS_OFFLINE = True


def _is_offline() -> bool:
    from huggingface_hub import constants

    return constants.is_offline_mode()


def _cache() -> str:
    from huggingface_hub import constants

    return constants.HF_HUB_CACHE


def _is_cached(name: str, kind: str) -> bool:
    """Whether the caches have something of it; a part that lacks is told by the loader."""
    folder = Path(_cache()) / f"{kind}s--{name.replace('/', '--')}" / "snapshots"
    if folder.is_dir() and any(folder.iterdir()):
        return True
    if kind == "dataset":
        import datasets.config

        return (Path(datasets.config.HF_DATASETS_CACHE) / name.replace("/", "___")).is_dir()
    return False


def _check_writable(key: str, name: str) -> None:
    cache = Path(_cache()).absolute()
    there = next(place for place in (cache, *cache.parents) if place.exists())
    if not os.access(there, os.W_OK) or not _takes_files(there):
        raise ConfigError(
            f"{key}: {name!r} must be downloaded, and the cache {cache} cannot be written; set "
            "HF_HOME to a folder that can"
        )


def _takes_files(folder: Path) -> bool:
    """A file system may refuse what the permissions allow, such as /proc to root."""
    import tempfile

    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
