"""What a run would be: settings, ranks, estimated memory and communication, without running it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import torch
import yaml
from peft import PeftModel

from capo_ds.capacity import readable
from capo_ds.config import Config
from capo_ds.cost.shape import Shape
from capo_ds.cost.step import Step, step_of
from capo_ds.distributed import comm
from capo_ds.distributed.deepspeed_json import read_deepspeed_json, zero_stage
from capo_ds.distributed.engine import CapoEngine
from capo_ds.facts import without_prompts
from capo_ds.memory import plan_on_all_ranks
from capo_ds.preparation import prepare
from capo_ds.rehearsal import Passes, passes_of, rehearse
from capo_ds.rollout.base import SamplerRun
from capo_ds.rollout.choose import check_sampler
from capo_ds.run_folder import check_resume
from capo_ds.tasks.prompts import encode


def dry_run(config: Config) -> None:
    """Print it on rank 0. Loads model and data as the run would, and writes no file; on all ranks.

    Raises:
        ConfigError: on all ranks, for whatever the run would refuse.
    """
    ready = prepare(config, dry=True)
    policy = ready.policy
    check_resume(config)
    sampling = SamplerRun(config, policy, ready.tokenizer, "dry", loads=False, dry=True)
    with comm.together("looking for the sampler"):
        check_sampler(sampling)
    prompts = encode(ready.tokenizer, ready.train_problems[:2])
    rehearse(config, policy, prompts, _passes(config, policy))
    plan = plan_on_all_ranks(config, policy)
    store = plan.choose(config.gradients.store)
    ranks = comm.gather(_this_rank(config))
    if not comm.is_main():
        return
    rows = [yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)]
    rows += [f"problems: {len(ready.train_problems)} for training, {ready.left_out} too long"]
    rows += [f"ranks{without_prompts(config, len(ranks))}"]
    rows += [f"  {number}: {rank}" for number, rank in enumerate(ranks)]
    rows += [f"memory per rank, estimated: {plan.told(store)}"]
    rows += _sent(step_of(config, Shape.of(policy, config.model.dtype), store, comm.world_size()))
    print("\n".join(rows), flush=True)


def _sent(step: Step) -> list[str]:
    """Bytes by phase, as a forecast tells them."""
    sent = {name: round(phase.sent(step.ranks)) for name, phase in step.phases().items()}
    whole = f"sent by a rank in a step, at most: {readable(sum(sent.values()))}"
    return [whole, *(f"  {readable(count):>10}  {name}" for name, count in sent.items() if count)]


def _passes(config: Config, policy: PeftModel) -> Passes | None:
    """At ZeRO 3 an engine gathers the weights of each pass; it writes nothing."""
    if zero_stage(read_deepspeed_json(config.deepspeed)) < 3:
        return None
    silent = config.model_copy(update={"train": config.train.model_copy(update={"report_to": []})})
    engine = CapoEngine(policy, silent, 1, Path(config.train.output_dir))
    return passes_of(engine)


def _this_rank(config: Config) -> str:
    """Where it runs, and its share of the rollout."""
    device = comm.device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    prompts = len(comm.shard(list(range(config.rollout.prompts_per_step))))
    return (
        f"{socket.gethostname()}, local rank {os.environ['LOCAL_RANK']}, {device} ({name}), "
        f"{torch.get_num_threads()} threads, {prompts} prompts = "
        f"{prompts * config.rollout.group_size} samples a step"
    )
