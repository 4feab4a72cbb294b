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
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from capo_ds.aggregation import GramProblem, aggregate
from capo_ds.gradients.per_sample import PerSampleGradients
from capo_ds.gradients.sketch import Sketch, SparseSketch, count_sketch, make_sketch
from capo_ds.gradients.store import GradientStore
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


# ---------------------------------------------------------------- alternatives


class HadamardSketch(Sketch):
    """Subsampled randomised Hadamard transform sqrt(n/k) R H D of each factor (Tropp 2011)."""

    @torch.no_grad()
    def project(self, index: int, gradients: Tensor) -> Tensor:
        rows = gradients.flatten(1)
        size = 1 << (rows.shape[1] - 1).bit_length()
        generator = torch.Generator().manual_seed(self.seed * 1000 + index)
        signs = torch.randint(0, 2, (size,), generator=generator).float() * 2 - 1
        if size > rows.shape[1]:
            rows = torch.nn.functional.pad(rows, (0, size - rows.shape[1]))
        mixed = _hadamard_transform(rows * signs)
        kept = torch.randperm(size, generator=generator)[: self.dim]
        places = torch.randperm(self.dim, generator=generator)[: len(kept)]
        sketch = rows.new_zeros(len(rows), self.dim)
        sketch[:, places] = mixed.index_select(1, kept)
        return sketch / math.sqrt(len(kept))


class OneNonzeroSketch(SparseSketch):
    """The count sketch alone: s = 1."""

    NONZEROS = 1


class TensorSketch(Sketch):
    """sum_t CS(dy_t) * CS'(x_t), a convolution done by FFT (Pham & Pagh 2013)."""

    def project(self, index: int, gradients: Tensor) -> Tensor:
        raise NotImplementedError("it is measured on outer products only")

    @torch.no_grad()
    def project_outer(self, index: int, output_gradients: Tensor, inputs: Tensor) -> Tensor:
        spectra = []
        for side, vectors in enumerate((output_gradients, inputs)):
            buckets = vectors.new_zeros(*vectors.shape[:2], self.dim)
            count_sketch(vectors, buckets, 4 * index + side)
            spectra.append(torch.fft.rfft(buckets))
        return torch.fft.irfft((spectra[0] * spectra[1]).sum(1), n=self.dim)


def _hadamard_transform(rows: Tensor) -> Tensor:
    """H x of each row (B, 2^m), 16 or 32 points at a time by matrix products."""
    count, size = rows.shape
    stride = 1
    while stride < size:
        points = min(32 if stride == 1 else 16, size // stride)
        if stride == 1:
            rows = rows.view(-1, points) @ _hadamard_matrix(points)
        else:
            rows = _hadamard_matrix(points) @ rows.view(-1, points, stride)
        stride *= points
    return rows.view(count, size)


def _hadamard_matrix(size: int) -> Tensor:
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


ALTERNATIVES = {
    "subsampled Hadamard": HadamardSketch,
    "count sketch, s = 1": OneNonzeroSketch,
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


def gradient_families(samples: int) -> dict[str, list[Tensor]]:
    return {
        "LoRA of a model": model_gradients(samples),
        "token sums, 16 factors": token_sums(samples, factors=16, length=256, heavy=False),
        "heavy channels, 2 factors": token_sums(samples, factors=2, length=512, heavy=True),
        "2 factors of rank 1": rank_one(samples),
    }


def model_gradients(samples: int) -> list[Tensor]:
    """Policy gradients of a 4-layer Qwen2 with random weights: 56 factors, r = 16.

    Four responses to a prompt; advantages +-1, so that every prompt has both signs.
    """
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=300,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,
    )
    lora = LoraConfig(r=16, target_modules="all-linear", init_lora_weights=False)
    policy = get_peft_model(Qwen2ForCausalLM(config), lora)
    prompts = torch.randint(300, (-(-samples // 4), 24)).repeat_interleave(4, 0)[:samples]
    tokens = torch.cat([prompts, torch.randint(300, (samples, 40))], dim=1)
    per_sample = PerSampleGradients(policy)
    store = GradientStore(per_sample.shapes, samples, torch.device("cpu"))

    def objectives() -> Tensor:
        log_probs = policy(tokens).logits[:, 23:-1].log_softmax(-1)
        return log_probs.gather(2, tokens[:, 24:, None]).sum((1, 2)) * _advantages(samples)

    per_sample.backward(objectives, store, 0)
    return store.rows


def token_sums(
    samples: int, factors: int, length: int, heavy: bool, tokens: int = 32
) -> list[Tensor]:
    """Factors (32 x length), sums of random outer products with uneven short-side energies.

    heavy: log-normal channel scales and 4 massive channels in x (as in trained transformers).
    """
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    gradients = []
    for _ in range(factors):
        outputs = normal(samples, tokens, 32) * normal(32).exp() + normal(32).exp() / 2
        inputs = normal(samples, tokens, length)
        if heavy:
            channels = (0.7 * normal(length)).exp()
            channels[:4] *= 60
            inputs = (inputs + normal(length).sign()) * channels / 2
        gradients.append(torch.einsum("nto,nti->noi", outputs, inputs))
    return gradients


def rank_one(samples: int) -> list[Tensor]:
    """2 factors (32 x 4096) u x', with the same u for all samples: the worst case of `outer`."""
    generator = torch.Generator().manual_seed(2)
    short = torch.randn(32, 1, generator=generator)
    return [short * torch.randn(samples, 1, 4096, generator=generator) for _ in range(2)]


def _advantages(samples: int) -> Tensor:
    return 1 - 2 * (torch.arange(samples) % 2).float()


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
    positive = _advantages(len(gram)).numpy() > 0
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
