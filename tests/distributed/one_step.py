"""One optimizer step on synthetic responses, by whatever ranks this is launched on.

one_step.py CASE.yaml [CASE.yaml ...]: for each case, rank 0 writes CASE.pt with the LoRA factors
before and after, the aggregated gradient (the sum of the ranks' parts) and the metrics.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from deepspeed.runtime.zero import GatheredParameters
from deepspeed.utils import safe_get_full_optimizer_state

from capo_ds.config import Config, load_config
from capo_ds.distributed import comm
from capo_ds.distributed.engine import CapoEngine
from capo_ds.learner import Learner
from capo_ds.models import load_policy
from capo_ds.rollout.rollout import Rollout
from capo_ds.telemetry.metrics import Measures, PhaseTimer

VOCABULARY = 200
SECOND_MOVE = {"seed": 5, "scale": 0.02}


def responses(config: Config) -> tuple[Rollout, torch.Tensor]:
    """Synthetic responses to all prompts, of uneven lengths, and advantages of all signs."""
    generator = torch.Generator().manual_seed(7)
    group, limit = config.rollout.group_size, config.rollout.max_new_tokens
    n = config.rollout.prompts_per_step * group

    def lengths(low: int, high: int, count: int) -> torch.Tensor:
        return torch.randint(low, high + 1, (count,), generator=generator)

    def tokens(width: int) -> torch.Tensor:
        return torch.randint(3, VOCABULARY, (n, width), generator=generator)

    prompt_lengths = lengths(3, 9, n // group).repeat_interleave(group)
    completion_lengths = lengths(2, limit, n)
    prompt_mask = torch.arange(9)[None] >= 9 - prompt_lengths[:, None]
    completion_mask = torch.arange(limit)[None] < completion_lengths[:, None]
    advantages = torch.randn(n, generator=generator)
    advantages[:: group + 1] = 0.0  # neutral samples
    rollout = Rollout(
        prompt_ids=tokens(9)[::group].repeat_interleave(group, 0) * prompt_mask,
        prompt_mask=prompt_mask,
        completion_ids=tokens(limit) * completion_mask,
        completion_mask=completion_mask,
        log_probs=torch.zeros(n, limit),
        entropy=torch.zeros(n, limit),
        truncated=completion_lengths == limit,
    )
    return rollout, advantages


def perturb(policy: torch.nn.Module, seed: int = 3, scale: float = 0.05) -> None:
    """Move the LoRA factors, the same on every rank: off their initial values (B = 0), or, after
    the behaviour policy has been taken down, off that policy."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data += scale * torch.randn(parameter.shape, generator=generator)


def whole_parameters(engine: CapoEngine) -> list[torch.Tensor]:
    with GatheredParameters(engine.parameters, enabled=engine.lockstep):
        return [parameter.detach().clone() for parameter in engine.parameters]


def first_moment(engine: CapoEngine, parameter: torch.nn.Parameter) -> torch.Tensor:
    state = engine._engine.optimizer.state.get(parameter)  # whole at ZeRO 0, in pieces above
    return state["exp_avg"] if state else safe_get_full_optimizer_state(parameter, "exp_avg")


def take_step(path: Path) -> None:
    config = load_config(path)
    policy = load_policy(config.model, seed=0)
    perturb(policy)
    engine = CapoEngine(policy, config, optimizer_steps=10, monitor_dir=config.train.output_dir)
    before = whole_parameters(engine)
    applied: list[torch.Tensor] = []
    apply = engine.apply

    def recorded(partial: list[torch.Tensor]) -> float:
        for part in partial:
            total = part.clone()
            dist.all_reduce(total)
            applied.append(total)
        return apply(partial)

    engine.apply = recorded
    measures = Measures()
    store = config.gradients.store
    learner = Learner(config, engine, "device" if store == "auto" else store, PhaseTimer())
    rollout, advantages = responses(config)
    rows = torch.arange(len(rollout)).view(-1, config.rollout.group_size)
    mine = rows[comm.rank() :: comm.world_size()].flatten()
    batch = learner.prepare(rollout.take(mine), advantages[mine], mine)
    if not config.on_policy:
        with GatheredParameters(engine.parameters, modifier_rank=0, enabled=engine.lockstep):
            perturb(engine.module, **SECOND_MOVE)
    for measured in learner.update(batch, number=0).measures:
        measures.add(measured)
    # Adam's first moment after one step is (1 - beta_1) times the gradient as the engine saw it.
    seen = [first_moment(engine, p) / (1 - config.optimizer.betas[0]) for p in engine.parameters]
    after = whole_parameters(engine)
    if comm.is_main():
        torch.save(
            {
                "before": before,
                "after": after,
                "gradient": applied,
                "seen": seen,
                "metrics": Measures.merge([measures]),
            },
            path.with_suffix(".pt"),
        )


if __name__ == "__main__":
    comm.init()
    for argument in sys.argv[1:]:
        take_step(Path(argument))
    comm.finish()
