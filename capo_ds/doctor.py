"""The checks of `capo doctor`, on the ranks that it is started on."""

import contextlib
import io
import shutil
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from importlib import metadata, util
from pathlib import Path

import torch
import torch.distributed as dist

from capo_ds import machines
from capo_ds.capacity import GIB, readable
from capo_ds.config import HOME, Config, ConfigError, load_config
from capo_ds.distributed import comm, launch
from capo_ds.telemetry.metrics import read_metrics
from capo_ds.telemetry.provenance import PACKAGES

LEAST_FREE = GIB  # bytes: checkpoints of LoRA factors, and logs
TINY = {
    "rollout.group_size": 4,
    "rollout.max_new_tokens": 16,
    "task.test_problems": 1,
    "train.steps": 1,
    "train.eval_every": 0,
}


PROMPTS = ("The sum of 12 and 30 is", "Ann has 3 eggs and finds 4 more. How many has she now?")


class Bad(Exception):
    """What is wrong, and the remedy."""


def versions() -> str:
    """Those that the tests run with."""
    pins = (HOME / "launchers" / "constraints.txt").read_text().splitlines()
    tested = dict(line.split("==") for line in pins if "==" in line)
    found = {name: metadata.version(name).partition("+")[0] for name in PACKAGES}
    if other := [f"{n} {found[n]}, not {tested[n]}" for n in PACKAGES if found[n] != tested[n]]:
        raise Bad(
            f"{'; '.join(other)}: pip install -c launchers/constraints.txt -e . brings the tested"
        )
    python = sys.version.split()[0]
    return ", ".join([f"python {python}", *(f"{name} {found[name]}" for name in PACKAGES)])


def devices() -> str:
    """A GPU for each rank of the machine, or none at all."""
    ranks, gpus = launch.ranks_here(), torch.cuda.device_count()
    if not gpus:
        return f"no GPU: {ranks} CPU ranks of {torch.get_num_threads()} threads here"
    if ranks > gpus:
        raise Bad(f"{ranks} ranks share {gpus} GPUs: start one rank a GPU (--num_gpus {gpus})")
    return f"{gpus} x {torch.cuda.get_device_name()} for {ranks} ranks here"


def process_group() -> str:
    """Its backend; and whether mpirun could make one."""
    mpi = "mpirun can" if util.find_spec("mpi4py") else "for mpirun: pip install -e '.[mpi]'"
    pdsh = "" if shutil.which("pdsh") else "; for deepspeed --hostfile: install pdsh"
    return f"{dist.get_backend()}, {comm.world_size()} ranks; {mpi}{pdsh}"


def disk(folder: Path) -> str:
    """Free bytes of the output folder, which must take a file."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"capo_ds")
    if (free := shutil.disk_usage(folder).free) < LEAST_FREE:
        raise Bad(
            f"{readable(free)} free in {folder.parent}, less than {readable(LEAST_FREE)}: make room"
        )
    return f"{readable(free)} free in {folder.parent}"


def shared_folder(mark: Path) -> str:
    """Whether this rank sees what rank 0 has written; only a vLLM server's adapters need it."""
    if mark.exists():
        return "shared with rank 0"
    return "not shared with rank 0: its outputs will be on rank 0's machine alone"


def all_reduce() -> str:
    """A sum over the ranks, and its time."""
    ones = torch.ones(2**18, device=comm.device())
    start = time.perf_counter()
    dist.all_reduce(ones)
    if not bool((ones == comm.world_size()).all()):
        raise Bad(f"the sum of ones over {comm.world_size()} ranks is {ones[0]:g}")
    return f"1 MiB in {1e3 * (time.perf_counter() - start):.1f} ms"


def tiny_step(folder: Path) -> str:
    """One whole step of training on the embedded model, with its checkpoint."""
    from capo_ds.trainer import Trainer

    settings = TINY | {
        "rollout.prompts_per_step": 2 * comm.world_size(),
        "train.output_dir": folder / "run",
    }
    overrides = [f"{key}={value}" for key, value in settings.items()]
    config = load_config("builtin:capo-embedded", overrides)
    with contextlib.redirect_stdout(io.StringIO()):
        Trainer(config).run()
    last = comm.on_main("reading the log", lambda: read_metrics(folder / "run")[-1])
    if "capo/gap" not in last:
        return "a plain step: all responses of each group were equally right"
    seconds = sum(value for name, value in last.items() if name.startswith("time/"))
    return f"{seconds:.1f} s, duality gap {last['capo/gap']:.0e}"


def sameness(config: Config | None, hosts: list[str]) -> Callable[[], str]:
    """Whether this rank's machine has what rank 0's has."""
    with comm.together("reading code and data"):
        mine = machines.identity(config)
    identities = comm.gather(mine)

    def check() -> str:
        if told := machines.differences(identities, hosts):
            raise Bad("; ".join(told) + ": bring the machines to the same state")
        return ", ".join(f"{name} {found}" for name, found in identities[0].items())

    return check


def link_rates(found: list[machines.Link], hosts: list[str]) -> str:
    """The slowest and the fastest."""
    if not found:
        return "one rank has none"
    if slow := machines.slow_links(found, hosts):
        told = "; ".join(
            f"{hosts[one]} (rank {one}) to {hosts[other]} (rank {other}): {rate / 1e9:.3f} GB/s"
            for one, other, rate in slow
        )
        raise Bad(f"{told}, under a tenth of its like: look at that cable, port or adapter")
    rates = [link.rate / 1e9 for link in found]
    return f"{min(rates):.2f} to {max(rates):.2f} GB/s over {len(found)} pairs of ranks"


def engine(config: Config) -> str:
    """A sampler started as a run starts it, given the adapter, and its answers compared."""
    from capo_ds.models import load_policy, load_tokenizer
    from capo_ds.rollout.base import SamplerRun
    from capo_ds.rollout.choose import make_sampler

    start = time.perf_counter()
    policy = load_policy(config.model, config.train.seed, comm.device())
    tokenizer = load_tokenizer(config.model)
    run = SamplerRun(config, policy, tokenizer, "doctor", comm.is_main())
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS]
    sampler, probe = make_sampler(run, prompts)
    started = time.perf_counter() - start
    with sampler.awake():
        sampler.sync()
        differences = probe.check() if probe else torch.zeros(1)
    return (
        f"{config.rollout.sampler} started in {started:.0f} s; log-probabilities as the trainer's "
        f"within {differences.max():.1e} nats"
    )


def report(name: str, check: Callable[[], str]) -> bool:
    """Run a check on all ranks and tell its outcome once; whether it was good on all."""
    outcome, good = "", True
    try:
        with comm.together(name):
            outcome = check()
    except (comm.PeerError, ConfigError) as error:
        outcome, good = str(error), False
    if comm.is_main():
        print(f"{'ok ' if good else 'BAD'}  {name}: {outcome}", flush=True)
    return good


def examine(output: Path, config: Config | None = None) -> bool:
    """All checks in order, as far as each makes sense after those before it; whether all are good.

    What is written goes to a new folder inside the output folder, and is removed again.
    """
    hosts = comm.gather(socket.gethostname())
    good = [report("versions", versions), report("devices", devices)]
    good += [report("process group", process_group), report("all-reduce", all_reduce)]
    good += [report("same on all ranks", sameness(config, hosts))]
    with comm.collective("links"):
        found = machines.links(hosts)
    good += [report("links", lambda: link_rates(found, hosts))]
    folder = output / comm.broadcast(f"doctor-{uuid.uuid4().hex[:8]}")
    if not report("output folder", lambda: _make(folder)):
        return False
    try:
        good += [report("shared folder", lambda: shared_folder(folder / "mark"))]
        good += [report("free disk", lambda: disk(output))]
        good += [report("CAPO step", lambda: tiny_step(folder))]
        if config and config.rollout.sampler != "hf":
            good += [report("sampler", lambda: engine(config))]
        free = shutil.disk_usage(output).free
        told = machines.table(free, machines.clock_offset(), found)
        if comm.is_main():
            print(told, flush=True)
    finally:
        comm.on_main("cleaning up", lambda: shutil.rmtree(folder))
    return all(good)


def _make(folder: Path) -> str:
    """Made by rank 0 alone: nodes that do not share it must not see it."""
    if comm.is_main():
        folder.mkdir(parents=True)
        (folder / "mark").touch()
    return str(folder.parent)
