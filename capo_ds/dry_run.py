"""What a run would be: settings, ranks, estimated memory and communication, without running it."""

from __future__ import annotations

import os
import socket

import torch
import yaml
from peft import PeftModel

from capo_ds.config import Config
from capo_ds.distributed import comm
from capo_ds.distributed.deepspeed_json import read_deepspeed_json
from capo_ds.distributed.zero import parameter_count
from capo_ds.memory import plan_on_all_ranks, readable
from capo_ds.preparation import prepare
from capo_ds.rehearsal import rehearse
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
    read_deepspeed_json(config.deepspeed)
    with comm.together("looking for the sampler"):
        check_sampler(SamplerRun(config, policy, ready.tokenizer, "dry", loads=False, dry=True))
    rehearse(config, policy, encode(ready.tokenizer, ready.train_problems[:2]))
    plan = plan_on_all_ranks(config, policy)
    store = plan.choose(config.gradients.store)
    ranks = comm.gather(_this_rank(config))
    if not comm.is_main():
        return
    sent = bytes_per_step(config, _trainable(policy), comm.world_size())
    rows = [yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)]
    rows += [f"problems: {len(ready.train_problems)} for training, {ready.left_out} too long"]
    rows += ["ranks", *(f"  {number}: {rank}" for number, rank in enumerate(ranks))]
    rows += [
        f"memory per rank, estimated: {readable(plan.needed)} of {readable(plan.capacity.device)}"
    ]
    rows += [f"  {readable(count):>10}  {name}" for name, count in plan.needs.items()]
    if plan.stores:
        rows += [f"  gradients: {plan.describe_stores()}; chosen: {store}"]
    rows += [f"sent by a rank per step, at most: {readable(sum(sent.values()))}"]
    rows += [f"  {readable(count):>10}  {name}" for name, count in sent.items()]
    print("\n".join(rows), flush=True)


def bytes_per_step(config: Config, parameters: int, ranks: int) -> dict[str, int]:
    """Bytes that the busiest rank sends in a step, by purpose, if every sample has a gradient.

    ZeRO 3's gathering of weights and the sampler's new adapter come on top.
    """
    rollout, gradients, minibatches = config.rollout, config.gradients, config.objective.minibatches
    updates = config.objective.epochs * minibatches
    prompts = -(-rollout.prompts_per_step // minibatches)
    samples = prompts * rollout.group_size
    mine = min(-(-rollout.prompts_per_step // ranks), prompts) * rollout.group_size
    sent = {"optimizer: gradient reduced, factors handed round": 2 * 4 * parameters}
    if config.uses_per_sample_gradients:
        sketched = gradients.sketch != "none"
        columns = 4 * gradients.sketch_dim
        if not sketched:
            columns = getattr(torch, gradients.dtype).itemsize * parameters
        sent["Gram matrix: columns exchanged (gradients.sketch)"] = mine * columns
        if sketched:
            sent["true norms of g_0 and dg"] = 2 * 4 * parameters
    shares = {name: count * (ranks - 1) // ranks for name, count in sent.items()}
    if config.uses_per_sample_gradients and ranks > 1:
        shares["Gram matrix: partial sums to rank 0"] = 8 * samples * (samples + 1) // 2
    return {name: count * updates for name, count in shares.items()}


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


def _trainable(policy: PeftModel) -> int:
    return sum(parameter_count(p) for p in policy.parameters() if p.requires_grad)
