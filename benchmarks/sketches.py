"""Sketches of per-sample LoRA gradients: speed, and error against dimension.

    OMP_NUM_THREADS=1 python benchmarks/sketches.py        # tables, JSON, figure; some minutes
    pip install traker --no-deps                           # to have TRAK's projector beside them

Speed is in samples per CPU second on one thread, all methods in one run. Every method starts either
from formed gradients (B, o, i) or from tokens' (dy, x). `matrix product` is the dense product with
signs that lie ready in memory: the least that any dense sketch costs. Alternatives that were not
chosen are measured too: a subsampled Hadamard transform, one nonzero a column, TensorSketch.

Error is |<S g, S h> - <g, h>| / (||g|| ||h||) over all pairs and several seeds, times sqrt(k), and
||g~ - g~_exact|| / ||g~_exact|| of CAPO's aggregate solved on the sketched Gram matrix.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from sketch_alternatives import ALTERNATIVES, TensorSketch
from sketched_gradients import advantages, gradient_families
from torch import Tensor

from capo_ds.aggregation import GramProblem, aggregate
from capo_ds.gradients.sketch import Sketch, make_sketch
from capo_ds.parts import built_in, names

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "sketches.json"
FIGURE = ROOT / "docs" / "figures" / "sketch_error.png"
DIM = 8192
TOKENS = 256
# name: (shapes, samples in a call)
SPEED_CASES = {
    "16 x (32 x 512), 64 samples": ([(32, 512)] * 16, 64),
    "16 x (32 x 512), 8 samples": ([(32, 512)] * 16, 8),
    "4 x (64 x 4096), 16 samples": ([(64, 4096)] * 4, 16),
}


# ---------------------------------------------------------------- speed


def speeds(shapes: list[tuple[int, int]], samples: int) -> dict[str, dict[str, float]]:
    """Samples per CPU second, from formed gradients and from tokens."""
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(samples, *shapes[0], generator=generator)] * len(shapes)
    outputs = torch.randn(samples, TOKENS, shapes[0][0], generator=generator)
    inputs = torch.randn(samples, TOKENS, shapes[0][1], generator=generator)
    sketches = {name: make_sketch(name, shapes, DIM, 0) for name in names("sketch")}
    sketches |= {name: kind(shapes, DIM, 0) for name, kind in ALTERNATIVES.items()}
    formed: dict[str, Callable[[], object]] = {
        name: lambda s=sketch: s(gradients) for name, sketch in sketches.items()
    }
    formed["matrix product"] = _matrix_product(gradients)
    sketches["TensorSketch"] = TensorSketch(shapes, DIM, 0)

    def from_tokens(sketch: Sketch) -> None:
        for index in range(len(shapes)):
            sketch.project_outer(index, outputs, inputs)

    rows = {name: {"formed": samples / seconds(run)} for name, run in formed.items()}
    for name, sketch in sketches.items():
        repeats = 1 if name == "TensorSketch" else 3
        spent = seconds(lambda s=sketch: from_tokens(s), repeats)
        rows.setdefault(name, {})["tokens"] = samples / spent
    forming = seconds(lambda: [torch.bmm(outputs.transpose(1, 2), inputs) for _ in shapes])
    rows["forming alone"] = {"tokens": samples / forming}
    spent = trak_seconds(gradients)
    if spent is not None:
        rows["TRAK"] = {"formed": samples / spent}
    return rows


def _matrix_product(gradients: list[Tensor]) -> Callable[[], None]:
    """The dense sketch's products alone, always with the same 4096 x k signs."""
    flat = [rows.flatten(1) for rows in gradients]
    signs = torch.randint(0, 2, (4096, DIM)).float() * 2 - 1
    sketch = torch.zeros(len(flat[0]), DIM)

    def run() -> None:
        for rows in flat:
            for block in rows.split(4096, dim=1):
                sketch.addmm_(block, signs[: block.shape[1]])

    return run


def trak_seconds(gradients: list[Tensor]) -> float | None:
    """TRAK's BasicProjector with its default block, one run; None where it is not installed."""
    try:
        from trak.projectors import BasicProjector, ProjectionType
    except ImportError:
        return None
    rows = torch.cat([part.flatten(1) for part in gradients], dim=1)
    projector = BasicProjector(
        rows.shape[1], DIM, 0, ProjectionType.rademacher, torch.device("cpu")
    )
    started = time.process_time()
    projector.project(rows, model_id=0)
    return time.process_time() - started


def seconds(run: Callable[[], object], repeats: int = 3) -> float:
    """Least CPU seconds of some runs."""
    spent = []
    for _ in range(repeats):
        started = time.process_time()
        run()
        spent.append(time.process_time() - started)
    return min(spent)


# ---------------------------------------------------------------- error


def errors(
    gradients: list[Tensor], kind: Callable[..., Sketch], dim: int, seeds: int
) -> dict[str, float]:
    """Root mean square and largest error times sqrt(k), theory's, and the error of g~."""
    flat = torch.cat([rows.flatten(1).double() for rows in gradients], 1)
    exact = flat @ flat.T
    norms = exact.diagonal().sqrt()
    scale = norms[:, None] * norms
    shapes = [(rows.shape[1], rows.shape[2]) for rows in gradients]
    samples = len(exact)
    target = capo_coefficients(exact, exact)
    relative, aggregate_errors = [], []
    for seed in range(seeds):
        sketch = kind(shapes, dim, seed)(gradients).double()
        gram = sketch @ sketch.T
        relative.append((gram - exact) / scale)
        difference = capo_coefficients(gram, exact) - target
        aggregate_errors.append(_length(difference, exact) / _length(target, exact))
    first, second = torch.triu_indices(samples, samples)
    pairs = torch.stack(relative)[:, first, second]
    return {
        "rms": float(pairs.pow(2).mean().sqrt()),
        "largest": float(pairs.abs().max()),
        "theory": theory(gradients, scale, dim),
        "aggregate": float(np.sqrt(np.mean(np.square(aggregate_errors)))),
    }


def theory(gradients: list[Tensor], scale: Tensor, dim: int) -> float:
    """Root mean square of sqrt(V(g, h) / k) / (||g|| ||h||): the line of dense signs."""
    rows = torch.cat([part.flatten(1).double() for part in gradients], dim=1)
    variance = scale**2 + (rows @ rows.T) ** 2 - 2 * rows**2 @ (rows**2).T
    first, second = torch.triu_indices(len(rows), len(rows))
    return float(((variance / scale**2)[first, second].mean() / dim).sqrt())


def capo_coefficients(gram: Tensor, exact: Tensor) -> np.ndarray:
    """CAPO's coefficients from a sketched Gram matrix and the true norms, C = 0.5."""
    positive = advantages(len(gram)).numpy() > 0
    answer = aggregate("capo", GramProblem(gram.numpy(), positive, ~positive), radius=0.5)
    vanilla = np.full(len(gram), 1 / len(gram))
    if not answer.on_boundary or answer.xi is None:
        return answer.coefficients
    return answer.recovered(_length(vanilla, exact), _length(answer.xi, exact))


def _length(coefficients: np.ndarray, gram: Tensor) -> float:
    return float(np.sqrt(coefficients @ gram.numpy() @ coefficients))


# ---------------------------------------------------------------- report


def speed_table(case: str, rows: dict[str, dict[str, float]]) -> str:
    """Samples per second, and how many times TRAK's (or the matrix product's) it is."""
    base = "TRAK" if "TRAK" in rows else "matrix product"
    lines = [
        f"\n{case}, k = {DIM}, {TOKENS} tokens: samples per CPU second",
        f"| sketch | from gradients | x {base} | from tokens (dy, x) |",
        "|---|---|---|---|",
    ]
    for name, row in rows.items():
        formed, tokens = row.get("formed"), row.get("tokens")
        ratio = "" if formed is None else f"{formed / rows[base]['formed']:.2f}"
        cells = ["" if value is None else f"{value:.1f}" for value in (formed, tokens)]
        lines.append(f"| {name} | {cells[0]} | {ratio} | {cells[1]} |")
    return "\n".join(lines)


def error_table(family: str, curves: dict[str, dict[int, dict[str, float]]]) -> str:
    lines = [
        f"\n{family}: rms (largest) error of inner products times sqrt(k); error of g~ in brackets",
        "| sketch | " + " | ".join(f"k = {dim}" for dim in next(iter(curves.values()))) + " |",
        "|---" * (1 + len(next(iter(curves.values())))) + "|",
    ]
    first = next(iter(curves.values()))
    cells = [f"{row['theory'] * math.sqrt(dim):.2f}" for dim, row in first.items()]
    lines.append(f"| theory, dense signs | {' | '.join(cells)} |")
    for name, rows in curves.items():
        cells = [
            f"{row['rms'] * math.sqrt(dim):.2f} ({row['largest'] * math.sqrt(dim):.1f}) "
            f"[{row['aggregate']:.3f}]"
            for dim, row in rows.items()
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(results: dict[str, dict[str, dict[int, dict[str, float]]]], path: Path) -> None:
    """Top: error of inner products with theory's line. Bottom: error of g~."""
    figure, panels = plt.subplots(
        2, len(results), figsize=(3.6 * len(results), 6.4), sharex=True, layout="constrained"
    )
    for column, (family, curves) in zip(panels.T, results.items(), strict=True):
        for name in names("sketch"):
            dims = list(curves[name])
            for axes, key in zip(column, ("rms", "aggregate"), strict=True):
                axes.loglog(dims, [curves[name][dim][key] for dim in dims], "o-", label=name)
        reference = curves["rademacher"]
        line = [reference[dim]["theory"] for dim in dims]
        column[0].loglog(dims, line, "k--", label=r"theory, $\sqrt{V/k}$")
        level = reference[dims[-1]]["aggregate"] * math.sqrt(dims[-1])
        column[1].loglog(
            dims, [level / math.sqrt(dim) for dim in dims], "k--", label=r"slope $1/\sqrt{k}$"
        )
        column[0].set_title(family)
        column[1].set_xlabel("dimension k")
        column[1].set_xticks(dims, [str(dim) for dim in dims])
        column[1].minorticks_off()
        for axes in column:
            axes.grid(alpha=0.3)
    panels[0, 0].set_ylabel("rms error of inner products / norms")
    panels[1, 0].set_ylabel(r"relative error of $\tilde{g}$")
    panels[0, 0].legend()
    panels[1, 0].legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dims", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192])
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--only", choices=("speed", "error"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results |= {"machine": platform.machine(), "torch": torch.__version__, "threads": 1}
    results |= {"dim": DIM, "tokens": TOKENS, "load": os.getloadavg()[0]}
    if args.only != "error":
        results["samples_per_second"] = {}
        for case, (shapes, samples) in SPEED_CASES.items():
            results["samples_per_second"][case] = speeds(shapes, samples)
            print(speed_table(case, results["samples_per_second"][case]), flush=True)
    if args.only != "speed":
        kinds = {name: built_in("sketch", name) for name in names("sketch")} | ALTERNATIVES
        curves: dict[str, dict] = {}
        for family, gradients in gradient_families(args.samples).items():
            curves[family] = {
                name: {dim: errors(gradients, kind, dim, args.seeds) for dim in args.dims}
                for name, kind in kinds.items()
            }
            print(error_table(family, curves[family]), flush=True)
        results["error"] = curves
        draw(curves, FIGURE)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
