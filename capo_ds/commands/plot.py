"""Draw the paper's figures from the logs of runs.

    python launchers/plot.py RUN [RUN...]

Runs that differ in their seed alone become one line, with their range as a band; labels name what
differs between the others. PNG and SVG.
"""

import argparse
import sys
from pathlib import Path
from typing import NoReturn

from capo_ds.config import ConfigError, expand
from capo_ds.telemetry.figures import FIGURES


def folder(text: str) -> Path:
    """A path of the command line; `~` after a `=` is not the shell's business."""
    return Path(expand(text))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="figures:\n" + "\n".join(f"  {name:<11} {words}" for name, words in FIGURES.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", type=folder, metavar="RUN", help="folder of a run")
    parser.add_argument(
        "--only", nargs="+", choices=FIGURES, help="draw these (default: all that can be drawn)"
    )
    parser.add_argument(
        "--output",
        type=folder,
        default=Path("runs/figures"),
        help="folder they go to (%(default)s)",
    )
    args = parser.parse_args()

    from capo_ds.run_folder import check_folder
    from capo_ds.telemetry.plots import NothingToDrawError, draw
    from capo_ds.telemetry.runs import NoRunError, group_runs, read_run

    try:
        check_folder("--output", args.output)
        groups = group_runs([read_run(folder) for folder in args.runs])
    except (ConfigError, NoRunError) as error:
        fail(error)
    for name in args.only or FIGURES:
        try:
            print(*draw(groups, name, args.output), sep="\n")
        except NothingToDrawError as error:
            if args.only:
                fail(error)
            print(f"left out {name}: {error}")


def fail(error: Exception) -> NoReturn:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
