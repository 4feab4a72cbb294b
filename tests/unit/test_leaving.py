"""How a rank leaves after an error."""

import os
import posix
import sys
from collections.abc import Callable

import pytest
import torch.distributed as dist

from capo_ds import cli
from capo_ds.distributed import comm

pytestmark = pytest.mark.usefixtures("process_group")


class Gone(BaseException):
    """The process would have ended here."""


@pytest.fixture
def left(monkeypatch) -> list[int]:
    """With which status the process would have been ended; the group is said to be NCCL's."""
    statuses: list[int] = []
    own, really = os.getpid(), os._exit

    def end(status: int) -> None:
        if os.getpid() != own:
            really(status)
        statuses.append(status)
        raise Gone  # as the process would, go no further

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(dist, "get_backend", lambda *_: "nccl")
    return statuses


def run_failing(monkeypatch, error: Exception) -> None:
    def fail(_):
        raise error

    run(monkeypatch, fail)


def run(monkeypatch, work: Callable[[object], None]) -> None:
    monkeypatch.setattr(sys, "argv", ["train", "--config", "builtin:smoke"])
    monkeypatch.setattr(cli, "start", lambda config: None)
    monkeypatch.setattr(cli, "LISTENS", 0.0)
    monkeypatch.setattr(comm, "finish", lambda: None)
    cli.main("", work)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (comm.PeerError("rollout failed on rank 1: OSError: gone", 1), "gone"),
        (OSError("nobody named a phase"), "nobody named a phase"),
    ],
)
def test_with_nccl_an_error_ends_the_process_at_once(monkeypatch, left, capfd, error, told):
    with pytest.raises(Gone):
        run_failing(monkeypatch, error)
    assert left == [comm.FAILED]
    assert told in capfd.readouterr().err


def test_with_gloo_it_leaves_as_ever(monkeypatch, left):
    monkeypatch.setattr(dist, "get_backend", lambda *_: "gloo")
    with pytest.raises(SystemExit) as ended:
        run_failing(monkeypatch, comm.PeerError("rollout failed on rank 1: OSError: gone", 1))
    assert ended.value.code == comm.FAILED and left == []


@pytest.mark.parametrize(
    ("module", "asked", "given"),
    [(os, 0, comm.FAILED), (os, 256, comm.FAILED), (os, 7, 7), (posix, 0, comm.FAILED)],
)
def test_an_exit_in_the_midst_is_told_and_no_success(
    monkeypatch, left, capfd, module, asked, given
):
    """As by a reward function; those of the children of a fork are their own."""

    def leave(_):
        if child := os.fork():
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            module._exit(asked)
        module._exit(0)

    with pytest.raises(Gone):
        run(monkeypatch, leave)
    assert left == [given]
    told = " ".join(capfd.readouterr().err.split())
    assert f"error: rank 0: os._exit({asked}) was called in {__file__}, line " in told
    assert "in leave: it ends the process in the midst of the run" in told


def test_an_error_begins_a_line_of_its_own_below_a_progress_bar(monkeypatch, left, capfd):
    print("3/8 |###", end="", file=sys.stderr, flush=True)
    with pytest.raises(Gone):
        run_failing(monkeypatch, comm.PeerError("rollout failed on rank 1: OSError: gone", 1))
    with pytest.raises(Gone):
        comm._end_with_peer("rank 1 is gone")  # what the watchdog of another rank does
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == "3/8 |###" and "error: rank 1 is gone" in lines
    assert any(line.startswith("error: rollout failed on rank 1") for line in lines[1:])
