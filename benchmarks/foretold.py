"""Does the forecast of a step come true on slow networks? Forecast against measured, in seconds.

    OMP_NUM_THREADS=1 python benchmarks/foretold.py [--ranks 2 4] [--networks 20,2 20,20]

As root on Linux: each rank is on a machine of its own, a network namespace, and the machines are
joined by a switch of chosen rate and latency (switch.py). On each network the ranks measure alpha,
beta and their own rates, as `--dry-run --nodes` does; forecast the log-probabilities and the update
of N responses, all of one length, by each of the `VARIANTS`; and make some. Seconds are those that
a rank computes and exchanges: what it waits for a core, which other programs or the other ranks are
at, is in neither (of a cluster, where each has its own, the forecast is).

Prints tables and writes benchmarks/results/foretold.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from peft import PeftModel
from switch import address, network, place

from capo_ds.config import Config, parse_config
from capo_ds.cost.forecast import forecast
from capo_ds.cost.measure import measure_cluster
from capo_ds.cost.shape import Shape
from capo_ds.cost.step import Step
from capo_ds.distributed import comm
from capo_ds.distributed.engine import CapoEngine
from capo_ds.learner import Learner
from capo_ds.models import load_policy
from capo_ds.rollout.rollout import Rollout
from capo_ds.telemetry.metrics import PhaseTimer

HERE = Path(__file__).resolve()
RESULTS = HERE.parent / "results" / "foretold.json"
PROMPTS, GROUP, PROMPT, RESPONSE = 12, 8, 8, 4
PHASES = ("log_probs", "backward", "gram", "solve", "reconstruct", "optimizer")


class Network(NamedTuple):
    """Megabits a second of each adapter, milliseconds of latency."""

    rate: float
    delay: float


NETWORKS = ("20,2", "20,20")
VARIANTS = {
    "exact": {},
    "sketched": {"sketch": "sparse", "sketch_dim": 8192},
    "dense, recomputed": {"sketch": "rademacher", "sketch_dim": 1024, "store": "recompute"},
}


# ---------------------------------------------------------------- a rank


def parsed(network: str) -> Network:
    rate, delay = map(float, network.split(","))
    return Network(rate, delay)


def settings(variant: str, folder: str) -> Config:
    return parse_config(
        {
            "model": {"path": "builtin:tiny", "lora_rank": 32, "lora_alpha": 64},
            "rollout": {
                "prompts_per_step": PROMPTS,
                "group_size": GROUP,
                "max_prompt_tokens": PROMPT,
                "max_new_tokens": RESPONSE,
            },
            "gradients": {"store": "device"} | VARIANTS[variant],
            "train": {"output_dir": folder, "report_to": [], "micro_batch_size": PROMPTS * GROUP},
        }
    )


def responses() -> tuple[Rollout, torch.Tensor, torch.Tensor]:
    """This rank's, all of full length; their advantages and numbers."""
    generator = torch.Generator().manual_seed(1)
    whole = PROMPTS * GROUP
    ids = torch.randint(3, 200, (whole, PROMPT + RESPONSE), generator=generator)
    advantages = torch.randn(whole, generator=generator)
    mine = torch.arange(whole).view(PROMPTS, GROUP)[comm.rank() :: comm.world_size()].flatten()
    count = len(mine)
    rollout = Rollout(
        prompt_ids=ids[mine, :PROMPT],
        prompt_mask=torch.ones(count, PROMPT, dtype=torch.bool),
        completion_ids=ids[mine, PROMPT:],
        completion_mask=torch.ones(count, RESPONSE, dtype=torch.bool),
        log_probs=torch.zeros(count, RESPONSE),
        entropy=torch.zeros(count, RESPONSE),
        truncated=torch.ones(count, dtype=torch.bool),
    )
    return rollout, advantages[mine], mine


def changed(now: Network) -> None:
    """Ask the process that has the switch for this network (all ranks)."""
    if comm.is_main():
        print("network", *now, flush=True)
        sys.stdin.readline()
    comm.max_over_ranks(0)


class Parts(PhaseTimer):
    """Of each phase the seconds that this thread computes, and those that it sleeps: what it waits
    for a core, which other programs and other ranks are at, is in neither."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: dict[str, np.ndarray] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = _clocks()
        yield
        self.parts[phase] = self.parts.get(phase, 0) + _clocks() - start


def _clocks() -> np.ndarray:
    computed, waited = (
        int(count) / 1e9 for count in Path("/proc/thread-self/schedstat").read_text().split()[:2]
    )
    return np.array([computed, time.perf_counter() - computed - waited])


def measured(learner: Learner, timer: Parts, updates: int) -> dict[str, float]:
    """Seconds of each phase and of the whole: what the busiest rank computes, and what the rank
    sleeps that is last at the collectives, for which no other holds it up. Medians over updates,
    but for a first."""
    rollout, advantages, numbers = responses()
    rows = []
    for number in range(updates + 1):
        comm.max_over_ranks(0)
        timer.parts.clear()
        with timer("whole"):
            with timer("log_probs"):
                batch = learner.prepare(rollout, advantages, numbers)
            learner.update(batch, number)
        parts = [timer.parts[name] for name in PHASES]
        rows.append([*parts, timer.parts["whole"] - sum(parts)])
    found = np.array(comm.gather(rows[1:]))  # by rank, update, phase and part
    seconds = np.median(found[..., 0].max(0) + found[..., 1].min(0), axis=0)
    work = np.median(found[..., 0].max(0).sum(1))
    named = dict(zip([*PHASES, "rest"], seconds.tolist(), strict=True))
    return named | {"whole": float(seconds.sum()), "work": float(work)}


def foretold(config: Config, policy: PeftModel) -> dict[str, Any]:
    """The forecast of the same phases, with what was measured for it."""
    hosts = comm.gather(os.uname().nodename)
    cluster = measure_cluster(config, policy, hosts)
    step = Step(config, Shape.of(policy, config.model.dtype), len(hosts), RESPONSE)
    found = forecast(step, cluster)
    row: dict[str, Any] = {name: found[name].seconds for name in PHASES}
    parts = [found[name] for name in (*PHASES, "meet")]
    row["whole"] = sum(part.seconds for part in parts)
    row["exchange"] = sum(part.exchange for part in parts)
    assert cluster.between
    return row | cluster.between.model_dump() | {"all_to_all": cluster.all_to_all}


def rank(args: argparse.Namespace) -> None:
    """One of the ranks, in its place."""
    folder = args.rank
    comm.init()
    config = settings("exact", folder)
    policy = load_policy(config.model, 0, comm.device())
    for parameter in policy.parameters():
        if parameter.requires_grad:  # B = 0 would leave the gradients of A at 0
            torch.nn.init.normal_(parameter, std=0.02)
    plain = copy.deepcopy(policy)  # without an engine's hooks, as where a forecast is measured
    engine = CapoEngine(policy, config, 1000, Path(folder))
    for now in map(parsed, args.networks):
        changed(now)
        for variant in args.variants:
            chosen = settings(variant, folder)
            before = foretold(chosen, plain)
            timer = Parts()
            learner = Learner(chosen, engine, chosen.gradients.store, timer)
            after = measured(learner, timer, args.updates)
            if learner.per_sample:
                learner.per_sample.remove()
            if comm.is_main():
                row = {"network": now._asdict(), "variant": variant, "ranks": comm.world_size()}
                row |= {"foretold": before, "measured": after}
                print("row", json.dumps(row), flush=True)
    comm.finish()


# ---------------------------------------------------------------- all of them


def started(names: list[str], args: argparse.Namespace, folder: str) -> list[subprocess.Popen]:
    found = []
    asked = ["--updates", str(args.updates)]
    asked += ["--networks", *args.networks, "--variants", *args.variants]
    for number, name in enumerate(names):
        own = {
            "RANK": str(number),
            "WORLD_SIZE": str(len(names)),
            "LOCAL_RANK": "0",
            "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": address(0),
            "MASTER_PORT": "29500",
            "GLOO_SOCKET_IFNAME": "eth",
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
            "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]),
        }
        words = [sys.executable, str(HERE), "--rank", folder, *asked]
        pipe = subprocess.PIPE if number == 0 else None
        command = [*place(name), *words]
        found.append(
            subprocess.Popen(command, env=os.environ | own, text=True, stdin=pipe, stdout=pipe)
        )
    return found


def compare(ranks: int, args: argparse.Namespace) -> None:
    """All networks and variants on so many ranks; a row is kept as it comes."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        switch, names = stack.enter_context(network(ranks))
        processes = started(names, args, folder)
        for process in processes:
            stack.callback(process.kill)
        first = processes[0]
        assert first.stdin and first.stdout
        for line in first.stdout:
            word, _, rest = line.partition(" ")
            if word == "network":
                rate, delay = map(float, rest.split())
                switch.rate, switch.delay = rate * 1e6 / 8, delay / 1e3
                first.stdin.write("changed\n")
                first.stdin.flush()
            elif word == "row":
                tell(json.loads(rest))
                keep(json.loads(rest))
        for process in processes:
            if status := process.wait():
                raise SystemExit(status)


def tell(row: dict[str, Any]) -> None:
    before, after, now = row["foretold"], row["measured"], Network(**row["network"])
    phases = ", ".join(f"{name} {before[name]:.2f} / {after[name]:.2f}" for name in PHASES)
    print(
        f"{row['ranks']} ranks, {now.rate:g} Mbit/s, {now.delay:g} ms, {row['variant']}: "
        f"{before['whole']:.2f} s foretold ({before['exchange']:.2f} of it exchange), "
        f"{after['whole']:.2f} measured, {before['whole'] / after['whole'] - 1:+.0%}; {phases}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--updates", type=int, default=3)
    parser.add_argument(
        "--networks", nargs="+", default=NETWORKS, metavar="RATE,DELAY", help="Mbit/s, milliseconds"
    )
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--rank", metavar="FOLDER", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank:
        rank(args)
        return
    for ranks in args.ranks:
        compare(ranks, args)


def keep(found: dict[str, Any]) -> None:
    """In the place of the one of the same ranks, network and variant, beside the others."""

    def key(row: dict[str, Any]) -> tuple:
        return row["ranks"], *row["network"].values(), row["variant"]

    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    rows = {key(row): row for row in (*known, found)}
    RESULTS.write_text(json.dumps([rows[one] for one in sorted(rows)], indent=1) + "\n")


if __name__ == "__main__":
    main()
