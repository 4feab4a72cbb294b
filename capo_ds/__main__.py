"""The `capo` command: `capo NAME [arguments]`, or `python -m capo_ds NAME [arguments]`."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

from capo_ds import __version__

COMMANDS = {path.stem: path for path in sorted(Path(__file__).parent.glob("commands/[a-z]*.py"))}


def usage() -> str:
    """Each command with the first line of what it says of itself."""
    lines = ["usage: capo COMMAND [arguments]      (capo COMMAND --help explains one)", ""]
    for name, path in COMMANDS.items():
        words = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
        lines.append(f"  {name.replace('_', '-'):<12} {words}")
    module = "capo_ds.commands.train --config builtin:quickstart"
    return "\n".join(
        [
            *lines,
            "",
            "On one rank as it stands; on several by a launcher:",
            f"  deepspeed --num_gpus 8 --module {module}",
            f"  torchrun --nproc_per_node 8 -m {module}",
            "--config takes a YAML file, or builtin:NAME for a recipe that ships with capo_ds.",
        ]
    )


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(usage())
    elif name == "--version":
        print(__version__)
    elif (module := name.replace("-", "_")) in COMMANDS:
        # The command's own parser sees itself as the program.
        sys.argv = [f"capo {name}", *sys.argv[2:]]
        importlib.import_module(f"capo_ds.commands.{module}").main()
    else:
        print(f"error: no command {name!r}\n\n{usage()}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
