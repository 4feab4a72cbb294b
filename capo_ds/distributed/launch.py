"""Which rank this process is, as its launcher tells it: deepspeed, torchrun, mpirun, srun, none."""

from __future__ import annotations

import os
import re
import socket
import sys
from functools import cache

import psutil

from capo_ds.config import ConfigError
from capo_ds.parent import first_ancestors
from capo_ds.terminal import columns, wrapped

MPI_RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")
SLURM_TASKS = "SLURM_STEP_NUM_TASKS"  # set by srun alone, not by the batch script around it
LOCAL_SIZES = (
    "LOCAL_WORLD_SIZE",  # torchrun
    "LOCAL_SIZE",  # deepspeed
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "MPI_LOCALNRANKS",  # MPICH
    "SLURM_STEP_TASKS_PER_NODE",  # such as 8(x2), of each node
)
DEEPSPEED_NODE = "deepspeed.launcher.launch"  # among the words of its command
RANK_VARIABLES = ("RANK", *MPI_RANKS, "SLURM_PROCID")
KEEPER = "CAPO_KEEPER"  # the process of `capo launch` above this one
# The file in which a rank leaves its exit status, for that process: torchrun makes 1 of any other.
LAST_STATUS = "CAPO_LAST_STATUS"
THREADS = "OMP_NUM_THREADS"
CONNECT = 1.0  # seconds; less than the watchdog takes a pause of the whole process for
PORTS = 20000  # and up, for SLURM jobs without a MASTER_PORT


def launched_rank() -> int:
    """The rank that the launcher gave this process, known before any process group exists."""
    for variable in ("RANK", *MPI_RANKS):
        if variable in os.environ:
            return int(os.environ[variable])
    return int(os.environ["SLURM_PROCID"]) if SLURM_TASKS in os.environ else 0


def discover_ranks() -> None:
    """Set RANK, LOCAL_RANK, WORLD_SIZE and MASTER_* where the launcher did not.

    Raises:
        ConfigError: under srun on several machines without MASTER_ADDR, or under MPI without
            mpi4py.
    """
    if "RANK" not in os.environ:
        if "OMPI_COMM_WORLD_RANK" in os.environ:  # within a SLURM job too
            _ask_mpi()
        elif SLURM_TASKS in os.environ:
            _ask_slurm()
        elif any(variable in os.environ for variable in MPI_RANKS):
            _ask_mpi()
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", str(free_port()))


def ranks_here() -> int:
    """Number of ranks on this machine, as the launcher tells it; all of them if it does not."""
    for variable in LOCAL_SIZES:
        if variable in os.environ:
            return int(re.findall(r"\d+", os.environ[variable])[0])
    return int(os.environ.get("WORLD_SIZE", "1"))


def share_cores() -> None:
    """Set OMP_NUM_THREADS where nobody has: the cores of this machine, or those that the launcher
    has bound this rank to, shared out among its ranks."""
    if THREADS not in os.environ:
        bound = os.environ.get("SLURM_CPUS_PER_TASK") if SLURM_TASKS in os.environ else None
        cores = int(bound) if bound else len(os.sched_getaffinity(0)) // ranks_here()
        os.environ[THREADS] = str(max(1, cores))


def busy_port() -> ConfigError:
    """What to do about a port that rank 0 cannot have."""
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    return ConfigError(
        f"MASTER_PORT: port {port} of {address} is taken, by another run perhaps; give a free one, "
        f"{free_port()} for instance: deepspeed --master_port N, torchrun --master_port N, or "
        "MASTER_PORT=N mpirun (or srun)"
    )


def tell(message: str) -> bool:
    """A last word on stderr, once per machine: only one of several may lack a file. Returns whether
    it is this rank that tells it."""
    first = launched_rank() == 0
    tells = first or os.environ.get("LOCAL_RANK") == "0"
    if tells:
        where = "" if first else f" on {socket.gethostname()}"
        text = wrapped(f"{message}{where}", columns(sys.stderr))
        print(text, file=sys.stderr, flush=True)
    return tells


def _ask_mpi() -> None:
    from deepspeed.comm import mpi_discovery

    try:
        from mpi4py import MPI

        port = os.environ.get("MASTER_PORT") or MPI.COMM_WORLD.bcast(free_port(), root=0)
        mpi_discovery(distributed_port=int(port), verbose=False)
    except ImportError as error:
        raise ConfigError(
            f"mpirun needs mpi4py for its MPI ({error}): pip install -e '.[mpi]', or use another "
            "launcher"
        ) from error


def _ask_slurm() -> None:
    slurm = os.environ
    if "MASTER_ADDR" not in slurm and int(slurm.get("SLURM_STEP_NUM_NODES", 1)) > 1:
        raise ConfigError(
            "srun on several machines needs MASTER_ADDR, the first one's name: see "
            "launchers/cluster/slurm.sbatch"
        )
    slurm["RANK"], slurm["WORLD_SIZE"] = slurm["SLURM_PROCID"], slurm[SLURM_TASKS]
    slurm["LOCAL_RANK"] = slurm["SLURM_LOCALID"]
    slurm.setdefault("MASTER_PORT", str(PORTS + int(slurm.get("SLURM_JOB_ID", 0)) % PORTS))


def agent_answers() -> bool | None:
    """Whether torchrun's store does, which is there before any rank of it; None: there is none."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        socket.create_connection(place, timeout=CONNECT).close()
    except OSError:
        return False
    return True


class Launcher:
    """The processes above this one that started it as a rank; none without a launcher."""

    def __init__(self) -> None:
        above, count = first_ancestors(), 0
        keeper = int(os.environ.get(KEEPER, 0))
        if keeper in above:
            count = above.index(keeper) + 1
        elif any(variable in os.environ for variable in LOCAL_SIZES):
            # deepspeed starts a launcher on each node, which outlives the first one.
            count = 2 if DEEPSPEED_NODE in _command(above[0]) else 1
        self._chain: list[tuple[psutil.Process, int]] = []  # a process, its parent at the start
        self._orphan = False  # since before it could be seen here
        self._excused = False
        try:
            for child, parent in list(zip([os.getpid(), *above], above, strict=False))[:count]:
                self._chain.append((psutil.Process(child), parent))
        except psutil.NoSuchProcess:
            self._orphan = True

    def excuse(self) -> None:
        """It may leave first from now on: the ranks have been asked to end, and finish their step.
        (deepspeed's dies of Ctrl-C.)"""
        self._excused = True

    def gone(self) -> bool:
        """Whether one of them has ended: its children are others' by now."""
        if self._excused:
            return False
        try:
            return self._orphan or any(one.ppid() != parent for one, parent in self._chain)
        except psutil.NoSuchProcess:
            return True


def _command(number: int) -> list[str]:
    """The words of a process; none if it is gone."""
    try:
        return psutil.Process(number).cmdline()
    except psutil.NoSuchProcess:
        return []


@cache
def launcher() -> Launcher:
    """Of this process, as it was when first asked for: at its start, or it may be gone by then."""
    return Launcher()


def free_port() -> int:
    """One that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
