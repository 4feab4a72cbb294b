"""Whose gradients are long, and who is heard: the quickstart's responses before training.

    OMP_NUM_THREADS=1 python benchmarks/studied/norms.py

Per-sample gradients of 64 prompts x 8 responses, by kind of response. `heard` is the kind's part
of the aggregate, sum_i w_i <g_i, g> / ||g||^2 over its members, for g the mean of the gradients
and of the unit gradients. Prints a table, and writes benchmarks/results/study_norms.json.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = REPOSITORY / "benchmarks" / "results" / "study_norms.json"
RECIPE = REPOSITORY / "launchers" / "recipes" / "capo-embedded.yaml"
KINDS = ("worked, right", "worked, wrong", "direct, right", "direct, wrong", "no box")
SETTINGS = {
    "deepspeed": "ds_configs/zero0.json",
    "rollout.prompts_per_step": 64,
    "objective.kl_weight": 0.0,
    "train.eval_every": 0,
}


def kind(text: str, formatted: bool, correct: bool) -> str:
    if not formatted:
        return "no box"
    worked = "worked" if "=" in text else "direct"
    return f"{worked}, {'right' if correct else 'wrong'}"


def measure(folder: str) -> tuple[list[str], dict[str, np.ndarray], np.ndarray]:
    """Kinds, numbers of each response with an advantage, and their Gram matrix."""
    from capo_ds.config import load_config
    from capo_ds.distributed import comm
    from capo_ds.gradients.store import GradientStore
    from capo_ds.learning.collect import collect
    from capo_ds.objective import token_weights
    from capo_ds.scoring import judge, score
    from capo_ds.trainer import Trainer

    overrides = SETTINGS | {"train.output_dir": folder}
    config = load_config(RECIPE, [f"{key}={json.dumps(v)}" for key, v in overrides.items()])
    comm.init()
    trainer = Trainer(config)
    learner = trainer.learner
    problems, rollout = trainer.responses.of(0)
    objective = learner.passes.objective
    judged = judge(config, trainer.tokenizer, trainer.scorer, problems, rollout)
    scored = score(config, objective, judged)
    batch = learner.prepare(rollout, scored.advantages, trainer.deal.responses())
    rows = (scored.advantages != 0).nonzero().squeeze(1)
    batch = batch.take(rows)
    lengths = batch.completion_mask.sum(1).float()
    limit = config.rollout.max_new_tokens
    weights = token_weights(lengths, "sequence_mean", len(batch), float(lengths.sum()), limit)
    store = GradientStore(trainer.engine.shapes, len(batch), comm.device())
    assert learner.per_sample is not None  # the recipe aggregates
    collect(learner.passes, learner.per_sample, store, batch.weighted(weights))
    flat = np.concatenate([rows.double().numpy().reshape(len(batch), -1) for rows in store.rows], 1)
    kinds = [
        kind(scored.texts[i], scored.verdicts[i].formatted, scored.verdicts[i].correct)
        for i in rows.tolist()
    ]
    numbers = {
        "length": lengths.numpy().astype(float),
        "advantage": batch.advantages.numpy().astype(float),
        "log_prob": (rollout.log_probs.sum(1)[rows] / lengths).numpy().astype(float),
    }
    comm.finish()
    return kinds, numbers, flat @ flat.T


def heard(gram: np.ndarray, weights: np.ndarray, members: np.ndarray) -> float:
    """sum over members of w_i <g_i, g> / ||g||^2, g = sum_i w_i g_i."""
    parts = weights * (gram @ weights)
    return float(parts[members].sum() / parts.sum())


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        kinds, numbers, gram = measure(folder)
    norms, names = np.sqrt(np.diag(gram)), np.array(kinds)
    mean, unit = np.full(len(norms), 1 / len(norms)), 1 / norms / len(norms)
    table = {}
    for name in KINDS:
        own = names == name
        if own.any():
            table[name] = {
                "responses": int(own.sum()),
                "share": float(own.mean()),
                "length": float(np.median(numbers["length"][own])),
                "advantage": float(np.mean(numbers["advantage"][own])),
                "norm": float(np.median(norms[own])),
                "norm / |advantage|": float(
                    np.median(norms[own] / np.abs(numbers["advantage"][own]))
                ),
                "heard in the mean": heard(gram, mean, own),
                "heard in the unit mean": heard(gram, unit, own),
            }
    per_advantage = norms / np.abs(numbers["advantage"])
    results = {
        "kinds": table,
        "norm quantiles 0, 5, 50, 95, 100%": np.quantile(norms, [0, 0.05, 0.5, 0.95, 1]).tolist(),
        "spearman of norm / |advantage| with length": spearmanr(per_advantage, numbers["length"])[
            0
        ],
        "spearman of norm / |advantage| with mean log-probability": spearmanr(
            per_advantage, numbers["log_prob"]
        )[0],
        "share of g_0's sum of norms in the longest tenth": float(
            np.sort(norms)[-len(norms) // 10 :].sum() / norms.sum()
        ),
        "cosine of mean and unit mean": float(
            mean @ gram @ unit / np.sqrt((mean @ gram @ mean) * (unit @ gram @ unit))
        ),
    }
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
