"""What a run needs before its engine: checked and loaded in one place, for runs and dry runs."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from capo_ds.compilation import check_compilable
from capo_ds.config import Config, ConfigError
from capo_ds.config.idle import idle_line
from capo_ds.distributed import comm
from capo_ds.distributed.deepspeed_json import read_deepspeed_json, zero_stage
from capo_ds.evaluation import Evaluator
from capo_ds.models import load_policy, load_shared_policy, load_tokenizer
from capo_ds.rollout.base import check_room, model_context
from capo_ds.run_folder import FolderLock, claim_run
from capo_ds.tasks import Judge, Problem, Scorer, load_problems
from capo_ds.tasks.mixture import PromptOrder, by_source
from capo_ds.tasks.prompts import asks_the_day, encode, fitting, render


@dataclass(frozen=True)
class Prepared:
    """The parts of a run; `left_out` training problems had prompts that are too long."""

    lock: FolderLock | None
    tokenizer: PreTrainedTokenizerBase
    scorer: Scorer
    train_problems: list[Problem]
    left_out: int
    order: PromptOrder
    evaluator: Evaluator | None
    policy: PeftModel


def prepare(config: Config, dry: bool = False) -> Prepared:
    """Load and check all that a run starts from; on all ranks. Rank 0 warns of idle settings.

    dry: leave the output folder as it is.

    Raises:
        ConfigError, PeerError: on all ranks, if anything cannot be had on any.
    """
    if comm.is_main() and (idle := idle_line(config)):
        print(f"warning: {idle}", file=sys.stderr, flush=True)
    with comm.together("start-up"):
        settings = read_deepspeed_json(config.deepspeed)
        stage = zero_stage(settings)
        check_compilable(config.model, stage)
        lock = claim_run(config, dry)
        tokenizer = load_tokenizer(config.model)
        judge = Judge(config.reward.time_limit, config.reward.workers)
        scorer = Scorer(config.reward, judge)
        problems = render(load_problems(config.task, "train"), config.prompt, tokenizer)
        kept = fitting(problems, tokenizer, config.rollout.max_prompt_tokens)
        scorer.check(kept)
        order = prompt_order(config, kept)
        evaluator = Evaluator(config, tokenizer, judge) if config.train.eval_every else None
        if stage < 3:
            policy = load_policy(config.model, config.train.seed, comm.device())
    if stage == 3:
        policy = load_shared_policy(config.model, config.train.seed, settings)
    with comm.together("start-up"):
        longest = max(map(len, encode(tokenizer, kept)))
        check_room(policy.config, longest, config.rollout.max_new_tokens)
        if evaluator:
            evaluator.check_lengths(model_context(policy))
    if comm.is_main() and asks_the_day(config.prompt, tokenizer):
        told = f"where the chat template asks for the day, it is prompt.date = {config.prompt.date}"
        print(told, file=sys.stderr, flush=True)
    left_out = len(problems) - len(kept)
    return Prepared(lock, tokenizer, scorer, kept, left_out, order, evaluator, policy)


def prompt_order(config: Config, problems: list[Problem]) -> PromptOrder:
    """Which of the problems each step draws.

    Raises:
        ConfigError: of a data set of the mixture, no problem is left.
    """
    members = by_source(problems)
    if empty := [entry.title for entry in config.task.entries if entry.title not in members]:
        raise ConfigError(
            f"rollout.max_prompt_tokens: {config.rollout.max_prompt_tokens} leaves no problem of "
            f"{empty[0]!r} in task.mixture; raise it"
        )
    parts = [members[entry.title] for entry in config.task.entries]
    weights, per_step = config.task.weights, config.rollout.prompts_per_step
    return PromptOrder(parts, weights, per_step, config.train.seed)
