"""Merge a LoRA adapter into its base model: a folder that needs neither PEFT nor the base."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from capo_ds.config import ConfigError, ModelConfig, expand


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapter", required=True, metavar="FOLDER", help="of the adapter")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="where to save")
    parser.add_argument("--model", metavar="PATH", help="base model; default: the adapter's own")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--trust-remote-code", action="store_true")
    parser.add_argument(
        "--load-in-4bit",
        action="store_true",
        help="merge into the 4-bit weights that the adapter was trained on (model.load_in_4bit), "
        "read into --dtype again",
    )
    args = parser.parse_args()

    from capo_ds import merging  # heavy imports only once the arguments are known to be good

    try:
        output = _folder(args.output)
        merging.check_output(output)
        base = merging.base_of(args.adapter, args.model)
        config = ModelConfig(
            path=base,
            dtype=args.dtype,
            trust_remote_code=args.trust_remote_code,
            load_in_4bit=args.load_in_4bit,
        )
        merging.merge(config, args.adapter, output)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except merging.MergeError as error:
        sys.exit(f"error: {error}")
    print(f"{args.adapter} merged into {base}: {args.output}; same greedy text as with the adapter")


def _folder(text: str) -> Path:
    try:
        return Path(expand(text))
    except ValueError as error:
        raise ConfigError(f"--output: {error}") from error


if __name__ == "__main__":
    main()
