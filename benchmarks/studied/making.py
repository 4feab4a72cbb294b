"""Make one run: train, then sample and judge more than the training log holds; its record."""

from __future__ import annotations

import json
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from capo_ds.config import Config, EvaluationConfig, load_config
from studied.plan import RECIPES, Run

REPOSITORY = Path(__file__).resolve().parents[2]
QUICKSTART = "launchers/recipes/capo-embedded.yaml"
SERIES = ("reward/mean", "reward/accuracy", "rollout/entropy", "rollout/length", "loss/grad_norm")
AVERAGED = ("conflict/", "capo/", "time/")
SAMPLED = EvaluationConfig(samples=8, temperature=1.0)
GREEDY = EvaluationConfig()
DIGITS = 5


def config_of(run: Run, folder: Path) -> Config:
    overrides = run.overrides | {"train.output_dir": str(folder)}
    recipe = REPOSITORY / RECIPES.get(run.setting, QUICKSTART)
    return load_config(recipe, [f"{key}={json.dumps(value)}" for key, value in overrides.items()])


def make(run: Run, folder: Path) -> dict[str, Any]:
    """Train (or go on) in `folder`, evaluate, and return the run's record. One rank."""
    from capo_ds.distributed import comm
    from capo_ds.trainer import Trainer

    started = time.process_time()
    config = config_of(run, folder)
    comm.init()
    trainer = Trainer(config)
    trainer.run()
    if len(told(folder)["series"]["reward/mean"]) != config.train.steps:
        raise RuntimeError(f"{folder}: not all steps are there: it was told to end")
    trainer.engine.module.eval()
    record = {
        "setting": run.setting,
        "method": run.method,
        "rate": run.rate,
        "seed": run.seed,
        "commit": json.loads((folder / "starts.jsonl").read_text().splitlines()[-1]).get("commit"),
        "steps": told(folder),
        "greedy": answered(trainer, config, GREEDY),
        "sampled": answered(trainer, config, SAMPLED),
        "cpu_seconds": round(time.process_time() - started, 1),
    }
    comm.finish()
    return record


def told(folder: Path) -> dict[str, Any]:
    """Of the training log: series over the steps, evaluations, and means over the run."""
    from capo_ds.telemetry.metrics import read_metrics

    lines = read_metrics(folder)
    steps = [line for line in lines if "reward/mean" in line]
    series = {
        name: [round(line[name], DIGITS) if name in line else None for line in steps]
        for name in sorted({name for line in steps for name in line})
        if name in SERIES or (name.startswith("reward/by_") and name.endswith("/accuracy"))
    }
    means = {
        name: round(statistics.fmean(line[name] for line in steps if name in line), DIGITS)
        for name in sorted({name for line in steps for name in line})
        if name.startswith(AVERAGED)
    }
    evaluations = [
        [line["step"], line["eval/accuracy"]] for line in lines if "eval/accuracy" in line
    ]
    return {"series": series, "evaluations": evaluations, "means": means}


def answered(trainer: Any, config: Config, how: EvaluationConfig) -> dict[str, dict[str, float]]:
    """avg@k and pass@k of the test problems: all, and by each of their levels and data sets."""
    from capo_ds.evaluation import Evaluator
    from capo_ds.tasks import Judge

    settings = how.model_copy(update={"benchmarks": config.evaluation.benchmarks})
    judge = Judge(config.reward.time_limit, config.reward.workers)
    evaluator = Evaluator(
        config.model_copy(update={"evaluation": settings}), trainer.tokenizer, judge
    )
    groups: dict[str, list[float]] = defaultdict(list)
    for evaluation in evaluator.evaluate(trainer.responses.sampler):
        title = evaluation.benchmark.title
        for problem, answer in zip(evaluation.benchmark.problems, evaluation.answered, strict=True):
            right = statistics.fmean(verdict.correct for verdict in answer.verdicts)
            level = f"level {problem.columns['level']}"
            for group in ("all", title, level, f"{title}, {level}"):
                groups[group].append(right)
    return {
        group: {
            "avg": round(statistics.fmean(shares), DIGITS),
            "pass": round(statistics.fmean(share > 0 for share in shares), DIGITS),
            "problems": len(shares),
        }
        for group, shares in groups.items()
    }
