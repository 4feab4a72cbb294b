"""A rank, a machine, a link or a launcher that is gone ends the others within a minute.

Two machines are two network namespaces of this one with a cable between them; where these cannot
be made (no root), the tests that need them are skipped.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from capo_ds.distributed.watchdog import POLL
from tests.conftest import REPOSITORY, clean_environment, free_port

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).with_name("lost.py")
MINUTE = 60.0
ADDRESSES = ("10.99.76.1", "10.99.76.2")


def ip(*words: str) -> bool:
    return subprocess.run(["ip", *words], capture_output=True, check=False).returncode == 0


@pytest.fixture
def machines() -> Iterator[list[str]]:
    """Names of two namespaces whose devices `eth` are joined by a cable."""
    names = [f"capo{os.getpid()}{side}" for side in "ab"]
    if not shutil.which("ip") or not all(ip("netns", "add", name) for name in names):
        pytest.skip("network namespaces cannot be made here")
    try:
        first, second = names
        peer = ("type", "veth", "peer", "name", "eth", "netns", second)
        assert ip("link", "add", "eth", "netns", first, *peer)
        for name, address in zip(names, ADDRESSES, strict=True):
            assert ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth")
            assert ip("-n", name, "link", "set", "eth", "up")
            assert ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            ip("netns", "del", name)


@contextmanager
def ranks(machines: list[str | None], way: str) -> Iterator[list[subprocess.Popen]]:
    """A rank on each machine (None: this one), once they have met."""
    here = machines[0] is None
    group = {
        "WORLD_SIZE": str(len(machines)),
        "MASTER_ADDR": "127.0.0.1" if here else ADDRESSES[0],
        "MASTER_PORT": str(free_port()),
    }
    group |= {} if here else {"GLOO_SOCKET_IFNAME": "eth"}
    started = []
    try:
        for rank, machine in enumerate(machines):
            place = ["ip", "netns", "exec", machine] if machine else []
            own = {"RANK": str(rank), "LOCAL_RANK": "0"}
            started.append(
                subprocess.Popen(
                    [*place, sys.executable, str(SCRIPT), way],
                    env=clean_environment() | group | own,
                    cwd=REPOSITORY,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        for process in started:
            assert process.stdout.readline() == "going\n", process.communicate()[1]
        time.sleep(4 * POLL)  # so that each has told what it is at
        yield started
    finally:
        for process in started:
            process.kill()


def told(process: subprocess.Popen, status: int = 1) -> str:
    """What the rank says as it ends, which must be soon."""
    _, words = process.communicate(timeout=MINUTE)
    assert process.returncode == status, words
    return words


def test_a_cut_link_ends_both_sides(machines):
    with ranks(machines, "forever") as (first, second):
        assert ip("-n", machines[1], "link", "set", "eth", "down")
        start = time.monotonic()
        assert "'optimizer step': that machine or the link to it is gone" in told(second)
        assert "rank 1 on" in (words := told(first)) and "'optimizer step'" in words
        assert time.monotonic() - start < MINUTE


def test_a_frozen_rank_is_noticed():
    with ranks([None, None], "forever") as (first, second):
        second.send_signal(signal.SIGSTOP)
        words = told(first)
        assert "rank 1 on" in words and "has not been heard of" in words


def test_a_slow_rank_is_not_taken_for_dead():
    with ranks([None, None], "slow") as both:
        for process in both:
            assert process.communicate(timeout=3 * MINUTE)[0] == "ended well\n"
            assert process.returncode == 0


@pytest.mark.parametrize("trouble", ["delay 200ms", "loss 10%"])
def test_a_bad_link_is_no_lost_one(machines, trouble):
    command = ["tc", "-n", machines[1], "qdisc", "add", "dev", "eth", "root", "netem"]
    if subprocess.run([*command, *trouble.split()], capture_output=True, check=False).returncode:
        pytest.skip("this kernel has no netem")
    with ranks(machines, "slow") as both:
        for process in both:
            assert process.communicate(timeout=3 * MINUTE)[0] == "ended well\n"


@pytest.mark.parametrize("way", ["forever", "starting", "young"])
@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun", "mpirun"])
def test_ranks_end_with_their_launcher(launcher, way):
    """Killed, so that it cannot tell them; its whole tree of processes must go."""
    port, python = str(free_port()), sys.executable
    where = ["--master_port", port]
    deepspeed = [python, "-m", "deepspeed.launcher.runner", "--num_accelerators", "2", *where]
    torchrun = [python, "-m", "torch.distributed.run", "--nproc_per_node", "2", *where]
    mpirun = [str(Path(python).with_name("mpirun")), "--oversubscribe", "-np", "2", python]
    commands = {"deepspeed": deepspeed, "torchrun": torchrun, "mpirun": mpirun}
    environment = clean_environment() | {"MASTER_PORT": port, "DS_ACCELERATOR": "cpu"}
    environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    process = subprocess.Popen(
        [*commands[launcher], str(SCRIPT), way],
        env=environment,
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        met = 0
        while met < 2:  # a line may hold the words of both
            line = process.stdout.readline()
            assert line, "the launcher has ended"
            met += line.count("going")
        family = psutil.Process(process.pid).children(recursive=True)
        mine = [child for child in family if str(SCRIPT) in child.cmdline()]
        assert len([child for child in mine if "launch" not in " ".join(child.cmdline())]) >= 2
    finally:
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(mine, timeout=30)
    for child in alive:
        child.kill()
    assert not alive


def test_a_rank_without_torchruns_store_ends():
    """Its launcher was gone before the rank could see that it had one."""
    group = {"RANK": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    group |= {"MASTER_PORT": str(free_port()), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    alone = subprocess.Popen(
        [sys.executable, str(SCRIPT), "forever"],
        env=clean_environment() | group,
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert "the launcher of this rank is gone" in told(alone)
    finally:
        alone.kill()
