"""Check that training can run here, on the ranks that this is launched on.

    python launchers/doctor.py [--output FOLDER] [--config FILE.yaml [--set KEY=VALUE ...]]
    deepspeed --num_accelerators 2 launchers/doctor.py

Versions, devices, the process group, whether code, recipe and data are the same on all machines,
FOLDER (free disk, seen by all ranks), the links between the ranks, a tiny CAPO step, and where
FILE.yaml asks for vLLM, an engine that must have the trainer's weights. Each is told as ok or BAD
with the remedy, and a table has a line a rank; the exit status is 1 if any is bad.
"""

import argparse
import sys
from datetime import timedelta
from pathlib import Path

from capo_ds.cli import BAD_CONFIG
from capo_ds.config import ConfigError, expand, load_config
from capo_ds.distributed import launch

TIMEOUT = timedelta(minutes=2)  # of a collective: the doctor says so rather than wait


def folder(text: str) -> Path:
    """A path of the command line; `~` after a `=` is not the shell's business."""
    return Path(expand(text))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=folder, default=Path("runs"), help="folder (%(default)s)")
    parser.add_argument("--config", metavar="FILE", help="of the run that is to start here")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    launch.launcher()  # while it is there

    from capo_ds.distributed import comm  # heavy imports only once the arguments are good
    from capo_ds.doctor import examine

    comm.init(TIMEOUT)
    config = None
    if args.config:
        try:
            with comm.together("reading the recipe"):
                config = load_config(args.config, args.set)
        except ConfigError as error:
            launch.tell(f"config error\n{error}")
            comm.finish()
            sys.exit(BAD_CONFIG)
    good = examine(args.output, config)
    comm.finish()
    sys.exit(not good)


if __name__ == "__main__":
    main()
