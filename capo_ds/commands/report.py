"""Make one HTML page of a run that opens anywhere.

python launchers/report.py RUN [RUN...]           (RUN/report.html)
python launchers/report.py RUN --output page.html
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--output", type=Path, help="file of the page, with one RUN")
    args = parser.parse_args()
    if args.output and len(args.runs) > 1:
        parser.error("--output takes one RUN")

    from capo_ds.telemetry.report import write_report  # seconds, for which --help need not wait
    from capo_ds.telemetry.runs import NoRunError

    try:
        for run in args.runs:
            print(write_report(run, args.output))
    except (NoRunError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
