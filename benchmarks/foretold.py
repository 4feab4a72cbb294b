"""Does the forecast of a step come true on slow networks? Forecast against measured, in seconds.

    OMP_NUM_THREADS=1 python benchmarks/foretold.py [--ranks 2 4] [--networks 20,2 20,20]

As root on Linux: each rank is on a machine of its own, a network namespace, and the machines are
joined by a switch of chosen rate and latency (switch.py). On each network the ranks measure alpha,
beta and their own rates, as `--dry-run --nodes` does; forecast the log-probabilities and the update
of N responses, all of one length, by each of the `VARIANTS`; and make some, in rounds, so that both
meet what else the machine does: compared are the medians. The update's phases are rank 0's, and
hold what it waits for others.

Prints tables and writes benchmarks/results/foretold.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

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


def measured(learner: Learner, updates: int) -> list[dict[str, float]]:
    """Seconds of each phase and of the whole, of each update after one that is not counted."""
    rollout, advantages, numbers = responses()
    rows = []
    for number in range(updates + 1):
        comm.max_over_ranks(0)
        learner.timer.take()
        start = time.perf_counter()
        with learner.timer("log_probs"):
            batch = learner.prepare(rollout, advantages, numbers)
        learner.update(batch, number)
        whole = time.perf_counter() - start
        row = {name.removeprefix("time/"): spent for name, spent in learner.timer.take().items()}
        rows.append(row | {"whole": whole})
    return rows[1:]


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


def typical(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The median of each phase, and of the whole."""
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


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
            learner = Learner(chosen, engine, chosen.gradients.store, PhaseTimer())
            before: list[dict[str, Any]] = []
            after: list[dict[str, float]] = []
            for _ in range(args.rounds):
                before.append(foretold(chosen, plain))
                after += measured(learner, args.updates)
            if learner.per_sample:
                learner.per_sample.remove()
            if comm.is_main():
                row = {"network": now._asdict(), "variant": variant, "ranks": comm.world_size()}
                row |= {"foretold": typical(before), "measured": typical(after)}
                row["all"] = [[row["whole"] for row in rows] for rows in (before, after)]
                print("row", json.dumps(row), flush=True)
    comm.finish()


# ---------------------------------------------------------------- all of them


def started(names: list[str], args: argparse.Namespace, folder: str) -> list[subprocess.Popen]:
    found = []
    asked = ["--rounds", str(args.rounds), "--updates", str(args.updates)]
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


def compare(ranks: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """All networks and variants on so many ranks."""
    rows: list[dict[str, Any]] = []
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
                rows.append(json.loads(rest))
                tell(rows[-1])
        for process in processes:
            if status := process.wait():
                raise SystemExit(status)
    return rows


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
    parser.add_argument("--rounds", type=int, default=3, help="of measuring rates and updating")
    parser.add_argument("--updates", type=int, default=2, help="of a round")
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
        keep(compare(ranks, args))


def keep(rows: list[dict[str, Any]]) -> None:
    """In the place of those of the same ranks, network and variant, beside the others."""

    def key(row: dict[str, Any]) -> tuple:
        return row["ranks"], *row["network"].values(), row["variant"]

    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    found = {key(row): row for row in (*known, *rows)}
    RESULTS.write_text(json.dumps([found[one] for one in sorted(found)], indent=1) + "\n")


if __name__ == "__main__":
    main()
