"""Draw the path of a step, of docs/architecture.md: python docs/figures/step.py"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

LOCAL, TOGETHER, MAIN = "#D6E6F2", "#F9DFC8", "#CFEBDD"
KEY = {LOCAL: "each rank for itself", TOGETHER: "ranks together (collectives)", MAIN: "rank 0"}
PATH = [  # phase as the metrics time/* name it, its code, who does it, and what; downwards
    ("rollout", "rollout/", LOCAL, "its share of the prompts,\nG sampled responses to each"),
    ("score", "tasks/, objective.py", LOCAL, "rewards by rule,\nadvantages within the group"),
    ("log_probs", "learner.py", LOCAL, "log-probabilities\nof the reference policy"),
    ("backward", "gradients/", LOCAL, "one batched backward pass:\n$g_i$ of its own samples"),
    (
        "gram",
        "distributed/gram.py",
        TOGETHER,
        r"columns of the gradients all to all; partial $Q = G^\top G$ summed on rank 0",
    ),
    ("solve", "aggregation/", MAIN, r"cone program in the N weights $\xi$, which are broadcast"),
    (
        "reconstruct",
        "gradients/store.py",
        LOCAL,
        "its part of\n" + r"$\tilde g = g_0 + C\,\|g_0\|\,d_g\,/\,\|d_g\|$",
    ),
    (
        "optimizer",
        "distributed/engine.py",
        TOGETHER,
        "DeepSpeed: reduce, partition (ZeRO), clip, AdamW, schedule",
    ),
]
RANKS = ("rank 0", "rank 1", "rank W - 1")
WIDTH, GAP, HEIGHT, DROP = 3.0, 0.25, 0.62, 0.3
TOTAL = len(RANKS) * (WIDTH + GAP) - GAP


def box(axes: Axes, x: float, y: float, width: float, colour: str, text: str) -> None:
    axes.add_patch(pyplot.Rectangle((x, y), width, HEIGHT, facecolor=colour, edgecolor="grey"))
    axes.text(x + width / 2, y + HEIGHT / 2, text, ha="center", va="center", fontsize=9)


def draw_phase(axes: Axes, y: float, phase: str, room: str, colour: str, text: str) -> None:
    mono = {"va": "center", "family": "monospace"}
    axes.text(-GAP, y + HEIGHT / 2, f"time/{phase}", ha="right", **mono)
    axes.text(TOTAL + GAP, y + HEIGHT / 2, room, **mono)
    if colour != LOCAL:
        box(axes, 0, y, TOTAL, colour, text)
        return
    for column in range(len(RANKS)):
        box(axes, column * (WIDTH + GAP), y, WIDTH, colour, text)


def main() -> None:
    figure, axes = pyplot.subplots(figsize=(12.5, 6.8), layout="constrained")
    centres = [column * (WIDTH + GAP) + WIDTH / 2 for column in range(len(RANKS))]
    for x, rank in zip(centres, RANKS, strict=True):
        axes.text(x, HEIGHT + DROP, rank, ha="center", fontsize=11)
    for x, (colour, name) in zip((0.4, 3.6, 7.4), KEY.items(), strict=True):
        axes.add_patch(pyplot.Rectangle((x, 1.42), 0.3, 0.22, facecolor=colour, edgecolor="grey"))
        axes.text(x + 0.4, 1.53, name, va="center")
    y = 0.0
    for phase in PATH:
        draw_phase(axes, y, *phase)
        for x in centres:
            arrow = {"arrowstyle": "->", "color": "grey"}
            axes.annotate("", (x, y - DROP), (x, y), arrowprops=arrow)
        y -= HEIGHT + DROP
    again = "the next step's rollout samples from the new LoRA factors"
    axes.text(TOTAL / 2, y + HEIGHT - 0.25, again, ha="center")
    axes.set(xlim=(-2.2, TOTAL + 3.0), ylim=(y + 0.2, 1.75))
    axes.axis("off")
    pyplot.rcParams["svg.hashsalt"] = "capo_ds"
    figure.savefig(Path(__file__).with_suffix(".svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
