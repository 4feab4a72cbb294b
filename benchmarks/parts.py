"""What CAPO's program loses when it is solved in parts: conflict on samples that none has seen.

    OMP_NUM_THREADS=1 torchrun --nproc_per_node 1 benchmarks/parts.py [--prompts 128] [--steps 3]

Steps of the embedded model as in `capo-embedded`, 8 responses to a prompt. In each, half of the
prompts (several drawings) makes the update: by one program; by one for each of k parts, whose
answers are joined in their mean (blocks of ranks, or a step's mini-batches taken as one update); or
by one of the parts alone (an update of a mini-batch). All are measured on the other half.

Prints the table of docs/scaling.md and writes benchmarks/results/parts.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from capo_ds import learner
from capo_ds.aggregation.heldout import halves, heldout, restricted
from capo_ds.aggregation.problem import GramProblem
from capo_ds.aggregation.update import Samples
from capo_ds.config import load_config
from capo_ds.configured import make_aggregator
from capo_ds.distributed import comm
from capo_ds.trainer import Trainer

RESULTS = Path(__file__).resolve().parent / "results" / "parts.json"
PARTS = (1, 2, 4, 8, 16)
DRAWINGS, RADIUS = 5, 0.5
TOLD = ("heldout_all_after", "heldout_alignment", "heldout_cosine")
BEFORE = ("heldout_all_before", "heldout_alignment_before", "heldout_cosine_before")


def seen(prompts: int, steps: int, folder: str) -> list[Samples]:
    """The samples of each step, as rank 0 is given them."""
    config = load_config(
        "builtin:capo-embedded",
        [
            f"rollout.prompts_per_step={prompts}",
            f"train.steps={steps}",
            "train.eval_every=0",
            "train.save_every=0",
            "train.report_to=[]",
            f"train.output_dir={folder}/run",
        ],
    )
    found, group, solve = [], config.rollout.group_size, learner.solve

    def watched(solver: Any, config: Any, grams: Any, roster: Any, total: int, *rest: Any) -> Any:
        signs = np.sign(roster.advantages)
        found.append(Samples(grams, signs, roster.numbers // group, total))
        return solve(solver, config, grams, roster, total, *rest)

    learner.solve = watched
    try:
        Trainer(config).run()
    finally:
        learner.solve = solve
    return found


class Parts:
    """A `heldout.Fit` by one program for each part of the prompts.

    alone: of the first part; else the mean of all parts' answers.
    """

    def __init__(self, parts: int, alone: bool, seed: int):
        self.parts, self.alone, self.seed = parts, alone, seed
        config = load_config("builtin:capo-embedded", [])
        self.aggregate = make_aggregator(config)

    def __call__(self, blocks: Sequence[GramProblem], groups: np.ndarray) -> np.ndarray:
        (whole,) = blocks
        names = np.random.default_rng(self.seed).permutation(np.unique(groups))
        coefficients = np.zeros(len(groups))
        for some in np.array_split(names, self.parts)[: 1 if self.alone else None]:
            mine = np.isin(groups, some)
            answer = self.aggregate(restricted(whole, mine), radius=RADIUS)
            coefficients[mine] = answer.coefficients
        return coefficients[None]


def measured(samples: Samples, parts: int, alone: bool) -> dict[str, float]:
    blocks, rows = samples.problems(), []
    for drawing in range(DRAWINGS):
        first = halves(samples.groups, np.random.default_rng(drawing))
        rows.append(heldout(blocks, samples.groups, first, Parts(parts, alone, drawing)))
    return {
        name: float(np.mean([row[f"conflict/{name}"] for row in rows])) for name in TOLD + BEFORE
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--steps", type=int, default=3)
    arguments = parser.parse_args()
    comm.init()
    with tempfile.TemporaryDirectory() as folder:
        steps = seen(arguments.prompts, arguments.steps, folder)
    found: dict[str, dict[str, float]] = {}
    print(f"{[len(samples.signs) for samples in steps]} samples with a gradient, of which half fit")
    print("| programs | joined: conflict, alignment, cosine | one alone |")
    print("|---|---|---|")
    for parts in PARTS:
        cells = []
        for alone in (False, True):
            rows = [measured(samples, parts, alone) for samples in steps]
            mean = {name: float(np.mean([row[name] for row in rows])) for name in TOLD + BEFORE}
            found[f"{parts}, {'alone' if alone else 'joined'}"] = mean
            cells.append(", ".join(f"{mean[name]:.4f}" for name in TOLD))
        print(f"| {parts} | {' | '.join(cells)} |", flush=True)
    print("| plain mean | " + ", ".join(f"{mean[name]:.4f}" for name in BEFORE) + " | |")
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    comm.finish()


if __name__ == "__main__":
    main()
