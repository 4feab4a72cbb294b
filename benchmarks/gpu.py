"""What one GPU makes of a step: every phase in seconds, against what the card can do at most.

    python benchmarks/gpu.py [--shapes 0.5b 1.5b] [--samples 128] [--minutes 9]

Needs no network: the models have the shapes of Qwen2.5-0.5B and 1.5B, with random weights, and the
responses (8 to a prompt, of uneven lengths) are random. For each shape, in a process of its own:
the card's ceilings (matrix products, copies on the device and from pinned memory); the
log-probabilities; updates of GRPO as one writes it for a plain DeepSpeed engine, of `mean`, and of
CAPO with the exact Gram matrix, sketches and stores; memory as planned and as used; rollouts by the
sampler and, if it is installed, by vLLM. Then the tests marked `gpu`, and a learning run of the
embedded model.

Writes JSON after every measurement and prints tables; what fails is told and the rest goes on (exit
status 1), what no time is left for is skipped. `--shapes tiny` runs all of it on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from gpu_shape import PLAIN, SHAPES, Record, measure_shape

from capo_ds.distributed import comm
from capo_ds.telemetry.metrics import read_metrics

HERE, GIB = Path(__file__).resolve().parent, 2**30


def gpu_tests(seconds: float) -> dict[str, Any]:
    """The tests that only a GPU can run."""
    if find_spec("pytest") is None:
        return {"skipped": "pytest is not installed"}
    words = ["-m", "pytest", "-q", "-m", "gpu", "-c", "tests/pytest.ini", "--rootdir", "."]
    ended = run_here([*words, "tests/unit"], seconds)
    lines = ended.stdout.strip().splitlines() or [ended.stderr[-300:]]
    found = {"summary": lines[-1], "status": ended.returncode}
    # 5: none was collected, as where all were left out.
    return found if ended.returncode in (0, 5) else {"failed": "\n".join(lines[-30:])}


def learning(steps: int, seconds: float) -> dict[str, Any]:
    """A run of the embedded model: the mean reward of its first and last steps."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["launchers/train.py", "--config", "launchers/recipes/quickstart.yaml"]
        chosen = [f"train.steps={steps}", f"train.output_dir={folder}/run", "train.eval_every=0"]
        ended = run_here([*words, *(word for key in chosen for word in ("--set", key))], seconds)
        if ended.returncode:
            return {"failed": (ended.stdout + ended.stderr)[-1500:]}
        rewards = [line["reward/mean"] for line in read_metrics(Path(folder) / "run")]
    few = max(1, min(5, steps // 2))
    return {"first": sum(rewards[:few]) / few, "last": sum(rewards[-few:]) / few, "steps": steps}


def run_here(words: list[str], seconds: float) -> subprocess.CompletedProcess[str]:
    """A Python program of this repository; ended after so many seconds, with status 124."""
    # Before what is there, where the wheels that were carried along lie.
    path = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
    known = os.environ | {"PYTHONPATH": path}
    command = [sys.executable, *words]
    try:
        return subprocess.run(
            command, cwd=HERE.parent, env=known, capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"not done in {seconds:.0f} seconds")


def table(shape: str, found: dict[str, Any]) -> str:
    """One shape's, for people."""
    best = found.get("ceilings", {})
    lines = [f"{shape}: " + ", ".join(f"{k} {v:.3g}/s" for k, v in best.items() if k != "failed")]
    phases = ("backward", "gram", "solve", "reconstruct", "optimizer")
    lines.append(
        "| | seconds | ratio | " + " | ".join(phases) + " | of bf16 peak | GiB | planned |"
    )
    lines.append("|---" * 11 + "|")
    plain = found.get(PLAIN, {}).get("seconds")
    for name, row in found.items():
        if why := row.get("failed") or row.get("skipped"):
            lines.append(f"| {name} | {why} |" + " |" * 9)
        elif "backward_flops" in row:
            spent = [f"{row[f'time/{p}']:.3f}" if f"time/{p}" in row else "" for p in phases]
            ratio = f"{row['seconds'] / plain:.2f}" if plain else ""
            peak = best.get("bf16_flops")
            share = f"{row['backward_flops'] / peak:.0%}" if peak else ""
            memory = [f"{row[key] / GIB:.2f}" for key in ("used_bytes", "planned_bytes")]
            cells = [name, f"{row['seconds']:.3f}", ratio, *spent, share, *memory]
            lines.append("| " + " | ".join(cells) + " |")
    for name, row in found.items():
        if "backward_flops" not in row and name != "ceilings" and "seconds" in row:
            more = [f"{key} {value:.3g}" for key, value in row.items()]
            lines.append(f"{name}: {', '.join(more)}")
    return "\n".join(lines)


def versions() -> dict[str, Any]:
    gpu = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name(0) if gpu else platform.processor() or "CPU",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
    }


def failures(found: Any) -> int:
    if not isinstance(found, dict):
        return 0
    return ("failed" in found) + sum(map(failures, found.values()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=["0.5b", "1.5b"])
    parser.add_argument("--samples", type=int, help="of an update (default 128; tiny: 16)")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which nothing is begun")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "gpu.json")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)  # the file of one shape
    args = parser.parse_args()
    end = time.monotonic() + 60 * args.minutes
    if args.one:
        comm.init()
        with tempfile.TemporaryDirectory() as folder:
            record = Record(args.one, end)
            measure_shape(args.shapes[0], args.samples, record, Path(folder))
        comm.finish()
        return
    whole = Record(args.out, end)
    whole.measure("versions", versions)
    small = args.shapes == ["tiny"]
    for number, shape in enumerate(args.shapes):
        left = (end - time.monotonic()) * (0.85 if small else 0.8) / (len(args.shapes) - number)
        found = whole.measure(shape, lambda shape=shape, left=left: one_shape(shape, args, left))
        print(table(shape, found), end="\n\n", flush=True)
    steps = 4 if small else 40
    left = max(30.0, end - time.monotonic())
    for name, run in {
        "tests": lambda: gpu_tests(left),
        "learning": lambda: learning(steps, left),
    }.items():
        print(f"{name}: {whole.measure(name, run)}", flush=True)
    sys.exit(1 if failures(whole.found) else 0)


def one_shape(shape: str, args: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """In a process of its own, whose memory and faults end with it."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        words = [str(HERE / "gpu.py"), "--one", str(out), "--shapes", shape]
        words += ["--samples", str(args.samples)] if args.samples else []
        ended = run_here([*words, "--minutes", str(seconds / 60)], seconds + 60)
        found = json.loads(out.read_text()) if out.exists() else {}
        if ended.returncode:
            found["process"] = {"failed": (ended.stdout + ended.stderr)[-1500:]}
        return found


if __name__ == "__main__":
    main()
