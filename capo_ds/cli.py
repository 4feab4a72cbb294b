"""What the launchers share: arguments, and errors told once."""

from __future__ import annotations

import argparse
import errno
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from capo_ds.config import Config, ConfigError, config_reference, load_config
from capo_ds.distributed import launch
from capo_ds.early_end import told_exits
from capo_ds.hub import fetch_once
from capo_ds.interruption import Interruption
from capo_ds.own_code import told_whole

BAD_CONFIG = 2
ROOM = "make room on the disk, and go on with train.resume=auto from the newest whole checkpoint"
LISTENS = 1.0  # seconds
PEERS_WAIT = timedelta(minutes=30)

# Is given the settings, and of the arguments `--nodes`, `--cluster`, `--prompt-tokens` and
# `--response-tokens`.
DryRun = Callable[[Config, int | None, str | None, int | None, int | None], None]


def main(
    description: str | None,
    run: Callable[[Config], None],
    dry_run: DryRun | None = None,
) -> None:
    """Read the config named on the command line and run, in the launcher's process group.

    dry_run: what `--dry-run` does instead, for launchers that have it.
    A config that cannot be used ends every rank with exit status 2 and one message, from rank 0;
    an error that all ranks know of ends them with status 1, likewise.
    """
    launch.launcher()  # while it is there
    launch.share_cores()  # before anything counts threads
    parser = _parser(description)
    if dry_run:
        _add_dry_run(parser, dry_run.__doc__)
    args = parser.parse_args()
    if dry_run:
        _check_forecast(parser, args)
    with Interruption(lambda: "nothing new was saved"), told_exits(_tell_early_end):
        _run(args, run, dry_run)


def _check_forecast(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Whether its arguments are given together."""
    more = args.cluster or args.prompt_tokens or args.response_tokens
    names = "--cluster, --prompt-tokens and --response-tokens are of a forecast"
    if not args.dry_run and (args.nodes or more):
        parser.error(f"--nodes, {names}; add --dry-run")
    if not args.nodes and more:
        parser.error(f"{names}; add --nodes K")


def _run(
    args: argparse.Namespace,
    run: Callable[[Config], None],
    dry_run: DryRun | None,
) -> None:
    from capo_ds.distributed import comm  # and with it torch, only where Ctrl-C is listened to

    try:
        config = load_config(args.config, args.set)
        start(config)
    except ConfigError as error:
        _exit(BAD_CONFIG, f"config error\n{error}")
    try:
        forecast = bool(dry_run and args.nodes)
        fetch_once(config, shapes_only=forecast)
        if dry_run and args.dry_run:
            tokens = args.prompt_tokens, args.response_tokens
            dry_run(config, args.nodes, args.cluster, *tokens)
        else:
            run(config)
    except ConfigError as error:  # found on all ranks alike
        _exit(BAD_CONFIG, f"config error\n{error}")
    except comm.PeerError as error:
        mine = error.__cause__ and error.rank in (None, comm.rank())
        if is_full(error):
            _exit(comm.FAILED, f"error: {error}; {ROOM}")
        if mine and not told_whole(error.__cause__):
            traceback.print_exception(error.__cause__)  # on the rank where it happened
        _exit(comm.FAILED, f"error: {error}")
    except (Exception, SystemExit) as error:  # of this rank alone, where no phase was named
        told = f"rank {comm.rank()}: {type(error).__name__}: {comm.told_error(error)}"
        comm.tell_peers(told)
        if told_whole(error):
            _exit(comm.FAILED, f"error: {told}")
        comm.abandon(comm.FAILED, error)
        raise
    finally:
        comm.finish()


def _tell_early_end(place: str) -> None:
    """Of this rank, before it goes."""
    from capo_ds.distributed import comm

    told = f"rank {launch.launched_rank()}: {place}"
    comm.tell_peers(told)
    launch.tell(f"\nerror: {told}")


def is_full(error: BaseException) -> bool:
    """Whether it tells of a disk, or of a quota, without room; of another rank by its words."""
    return any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT))


def start(config: Config) -> None:
    """Check what can be checked before anything starts, and join the process group.

    Raises:
        ConfigError: a setting cannot be used, or the ranks cannot meet.
    """
    from capo_ds.distributed import comm

    check_files(config)
    _hush_libraries()
    # Ranks may wait in a collective for one that waits for its sampler.
    comm.init(PEERS_WAIT + timedelta(seconds=config.rollout.timeout))


def check(config: Config) -> None:
    """`start` and what follows it, in a process group that is there already."""
    check_files(config)
    fetch_once(config)
    _hush_libraries()


def _hush_libraries() -> None:
    """Leave the terminal to the run's own lines."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # one bar per rank for reading the weights
    # DeepSpeed calls what torch 2.13 has renamed.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")


def check_files(config: Config) -> None:
    """What can be checked of the files and packages a config names before anything starts."""
    from capo_ds import configured
    from capo_ds.distributed.deepspeed_json import ignored_lines
    from capo_ds.telemetry import tables

    for line in ignored_lines(config.deepspeed):
        if launch.launched_rank() == 0:
            print(f"warning: {line}", file=sys.stderr, flush=True)
    tables.check(config.train.report_to)
    tables.check_login(config.train.report_to)
    configured.check(config)


def _exit(status: int, message: str) -> None:
    """End this rank; those that have told nothing later than those that have, for torchrun ends the
    others with the first."""
    from capo_ds.distributed import comm

    if file := os.environ.get(launch.LAST_STATUS):
        with suppress(OSError):  # another machine's, or `capo launch` is gone
            Path(file).write_text(str(status))
    if not launch.tell(message if status == BAD_CONFIG else f"\n{message}"):  # below a bar
        time.sleep(LISTENS)
    comm.abandon(status)
    sys.exit(status)


def _add_dry_run(parser: argparse.ArgumentParser, description: str | None) -> None:
    parser.add_argument("--dry-run", action="store_true", help=description)
    parser.add_argument(
        "--nodes",
        type=at_least_one,
        metavar="K",
        help="with --dry-run: seconds and bytes a step by phase on K machines, and what fits there",
    )
    parser.add_argument(
        "--cluster",
        metavar="FILE",
        help="with --nodes: the machines' rates, or builtin:h100 or builtin:a800, which ship; else "
        "they are measured on the ranks that are started",
    )
    parser.add_argument(
        "--prompt-tokens",
        type=at_least_one,
        metavar="T",
        help="with --nodes: of a prompt (default: rollout.max_prompt_tokens)",
    )
    parser.add_argument(
        "--response-tokens",
        type=at_least_one,
        metavar="T",
        help="with --nodes: of a response (default: rollout.max_new_tokens)",
    )


def at_least_one(text: str) -> int:
    """A number of the command line."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1")
    return int(text)


def _parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description,
        epilog="config keys:\n" + config_reference(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE",
        help="YAML with the settings, or builtin:NAME for a recipe that ships",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one setting, e.g. --set capo.radius=0.1 or --set 'task.levels=[1, 2]' "
        "(may be repeated)",
    )
    # The deepspeed launcher adds it; the environment says the same.
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    return parser
