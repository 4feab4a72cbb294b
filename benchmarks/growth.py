"""A step of Qwen2.5-1.5B's shape from 1 to 512 GPUs, 64 samples a GPU, by the forecast; its figure.

    python benchmarks/growth.py [--cluster launchers/cluster/h100.yaml]

Prints the table of docs/scaling.md and draws docs/figures/growth.svg. Nothing is run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from step_shapes import SIZES, unloaded

from capo_ds.config import HOME, parse_config
from capo_ds.cost.cluster import Cluster, load_cluster
from capo_ds.cost.forecast import Forecast, forecast
from capo_ds.cost.shape import Shape
from capo_ds.cost.step import Step

FIGURE = Path(__file__).resolve().parents[1] / "docs" / "figures" / "growth.svg"
GPUS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
PROMPTS, GROUP, PROMPT, MOST, MEAN = 8, 8, 128, 384, 220
METHODS = {
    "GRPO": {"aggregator": "mean", "measure_conflict": False},
    "CAPO, exact": {},
    "CAPO, sketched": {"gradients": {"sketch": "sparse"}},
    "CAPO, mini-batches of 1,024": {},
}
LARGEST = 1024  # samples of a mini-batch, in the last


def qwen() -> Shape:
    """Qwen2.5-1.5B with LoRA factors on the attention's projections."""
    return Shape.of(unloaded(SIZES["1.5b"], tie_word_embeddings=True), "bfloat16")


def of(method: str, gpus: int, cluster: Cluster, shape: Shape) -> dict[str, Forecast]:
    """The forecast; of fewer GPUs than a machine has, on a part of one."""
    parts = max(1, PROMPTS * GROUP * gpus // LARGEST) if "mini" in method else 1
    config = parse_config(
        {
            "objective": {"minibatches": parts},
            "model": {"dtype": "bfloat16"},
            "rollout": {
                "prompts_per_step": PROMPTS * gpus,
                "group_size": GROUP,
                "max_prompt_tokens": PROMPT,
                "max_new_tokens": MOST,
            },
            "train": {"micro_batch_size": 16},
        }
        | METHODS[method]
    )
    part = cluster.model_copy(update={"ranks": min(gpus, cluster.ranks)})
    return forecast(Step(config, shape, gpus, MEAN), part)


def update_seconds(found: dict[str, Forecast]) -> float:
    return sum(one.seconds for name, one in found.items() if name != "rollout")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cluster", default=str(HOME / "launchers" / "cluster" / "h100.yaml"))
    cluster = load_cluster(parser.parse_args().cluster)
    shape = qwen()
    found = {name: [of(name, gpus, cluster, shape) for gpus in GPUS] for name in METHODS}
    heads = ["GPUs", "N", "GRPO", "exact", "sketched", f"mini-batches of {LARGEST}"]
    heads += ["Gram, exact", "Gram, sketched", "solve", "sent"]
    print("| " + " | ".join(heads) + " |")
    print("|---" * len(heads) + "|")
    for row, gpus in enumerate(GPUS):
        each = [found[name][row] for name in METHODS]
        cells, exact, sketched = [update_seconds(one) for one in each], each[1], each[2]
        cells += [exact["gram"].seconds, sketched["gram"].seconds, exact["solve"].seconds]
        sent = sum(one.sent for one in exact.values()) / 1e9
        numbers = [f"{cell:.3g}" for cell in cells]
        print(f"| {gpus} | {64 * gpus} | {' | '.join(numbers)} | {sent:.1f} GB |")
    figure, axes = plt.subplots(figsize=(7, 4))
    for name, rows in found.items():
        axes.plot(GPUS, [update_seconds(row) for row in rows], marker="o", label=name)
    for phase, style in (("gram", "--"), ("solve", ":")):
        rows = found["CAPO, exact"]
        label = {"gram": "Gram matrix, exact", "solve": "solve"}[phase]
        axes.plot(GPUS, [row[phase].seconds for row in rows], style, color="grey", label=label)
    axes.set(xscale="log", yscale="log", xlabel="GPUs, 64 samples each", ylabel="seconds an update")
    axes.set_xticks(GPUS, [str(gpus) for gpus in GPUS])
    axes.minorticks_off()
    axes.set_ylim(bottom=1e-3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(FIGURE)


if __name__ == "__main__":
    main()
