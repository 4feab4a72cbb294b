"""What the user reads of ranks, data and steps when a run starts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch

from capo_ds.config import Config
from capo_ds.distributed import checkpoint, comm
from capo_ds.evaluation import Evaluator
from capo_ds.run_state import checkpoint_name
from capo_ds.tasks import Problem


def run_facts(
    config: Config,
    problems: list[Problem],
    left_out: int,
    evaluator: Evaluator | None,
    first_step: int,
) -> dict[str, Any]:
    """Rows of the summary. left_out: problems with too long prompts. first_step: made before."""
    train = config.train
    facts = {
        "ranks": f"{comm.world_size()}{without_prompts(config, comm.world_size())}",
        "device": f"{comm.device()}, {torch.get_num_threads()} threads a rank",
        "deepspeed": config.deepspeed,
        "task": _task_row(config, problems, left_out),
        "evaluation": _evaluation_row(evaluator),
        "prompt": problems[0].prompt,
        "reward": " + ".join(
            f"{entry.weight:g} * {entry.title}" for entry in config.reward.functions
        ),
        "steps": f"{first_step + 1} to {train.steps}, seed {train.seed}, "
        f"{_micro_batch(config)} a micro-batch",
    }
    if first_step:
        place = Path(train.output_dir) / checkpoint.CHECKPOINTS / checkpoint_name(first_step)
        facts["goes on"] = f"after step {first_step}, from {place}"
    return facts


def without_prompts(config: Config, ranks: int) -> str:
    """Which of the ranks have nothing to do for lack of prompts, and the remedy; empty if none."""
    first, last = config.rollout.prompts_per_step, ranks - 1
    if first > last:
        return ""
    which = f"rank {last} has" if first == last else f"ranks {first} to {last} have"
    return f"; {which} no prompts in a step (raise rollout.prompts_per_step)"


def _micro_batch(config: Config) -> str:
    tokens = config.train.micro_batch_tokens
    return f"{tokens} tokens" if tokens else f"{config.train.micro_batch_size} sequences"


def _task_row(config: Config, problems: list[Problem], left_out: int) -> str:
    sources = Counter(problem.source for problem in problems)
    task = config.task
    shares = [f"{share:.0%} of the prompts from " for share in task.weights]
    return ", ".join(
        f"{share if task.mixture else ''}{title}: {sources[title]} training problems"
        for share, title in zip(shares, sources, strict=True)
    ) + (f" ({left_out} left out, too long)" if left_out else "")


def _evaluation_row(evaluator: Evaluator | None) -> str:
    if evaluator is None:
        return "never"
    return ", ".join(
        f"{benchmark.title}: {len(benchmark.problems)} problems"
        + (f" ({benchmark.left_out} left out, too long)" if benchmark.left_out else "")
        for benchmark in evaluator.benchmarks
    )
