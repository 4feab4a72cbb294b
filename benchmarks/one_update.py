"""One update of a saved model on the ranks that this is launched on, against one rank in float64.

torchrun --nproc_per_node 2 benchmarks/one_update.py FOLDER [REFERENCE]

At ZeRO 2 and 3, the ranks make the aggregated gradient g~ of CAPO (exact Gram matrix) for some
responses to some prompts, each its share of them. The reference is made by rank 0 alone: autograd,
one sample at a time, without padding, in float64, and the same aggregator on the Gram matrix of
those gradients. Prints the relative errors of g~. REFERENCE: a folder of the same weights, for the
reference, where autograd has no float64 on those of FOLDER (4 bits).
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.distributed as dist
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from capo_ds import aggregate
from capo_ds.architecture import taken
from capo_ds.config import Config, parse_config
from capo_ds.distributed import comm
from capo_ds.distributed.engine import CapoEngine
from capo_ds.learner import Learner
from capo_ds.models import load_policy
from capo_ds.rollout.rollout import Rollout, assemble
from capo_ds.telemetry.metrics import PhaseTimer

PROMPT_TOKENS = [7, 3, 5]  # of the prompts: three, so that two ranks have unequal shares
COMPLETION_TOKENS = [6, 2, 4, 1, 5, 3]  # of two responses each
ADVANTAGES = [1.0, -0.7, 0.4, -1.1, 0.9, 0.3]
RADIUS = 0.5
NOISE = 0.02  # on the LoRA factors, which would start at B = 0


def main() -> None:
    comm.init()
    folders = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
    errors = {f"ZeRO {stage}": error_at(folders[0], folders[-1], stage) for stage in (2, 3)}
    if comm.is_main():
        print(json.dumps(errors))
    comm.finish()


def error_at(folder: str, same_weights: str, stage: int) -> float:
    """Relative error of the ranks' g~ at a ZeRO stage; on all ranks."""
    with tempfile.TemporaryDirectory() as place:
        # A threshold of 0, or ZeRO 3 would leave weights as small as these whole.
        zero = {"stage": stage, "stage3_param_persistence_threshold": 0}
        settings = Path(place) / "deepspeed.json"
        settings.write_text(json.dumps({"zero_optimization": zero}))
        config = parse_config(
            {
                "model": {"path": folder, "lora_rank": 2, "lora_targets": "all-linear"},
                "rollout": {"group_size": 2, "prompts_per_step": len(PROMPT_TOKENS)},
                "objective": {"kl_weight": 0.0},
                "optimizer": {"max_grad_norm": 0.0},
                "aggregator": "capo",
                "capo": {"radius": RADIUS},
                "train": {"micro_batch_size": 3, "output_dir": place},
                "deepspeed": str(settings),
            }
        )
        policy = moved(load_policy(config.model, seed=0))
        vocabulary = policy.get_input_embeddings().weight.shape[0]
        found = on_ranks(config, policy, responses(vocabulary))
    model = config.model.model_copy(update={"path": same_weights})
    expected = reference(config, moved(load_policy(model, seed=0)), responses(vocabulary))
    return float((found - expected).norm() / expected.norm())


def responses(vocabulary: int) -> Rollout:
    generator = torch.Generator().manual_seed(7)

    def tokens(length: int) -> list[int]:
        return torch.randint(3, vocabulary, (length,), generator=generator).tolist()

    prompts = [prompt for length in PROMPT_TOKENS for prompt in [tokens(length)] * 2]
    completions = [tokens(length) for length in COMPLETION_TOKENS]
    zeros = [[0.0] * length for length in COMPLETION_TOKENS]
    cut = [False] * len(prompts)
    return assemble(prompts, completions, zeros, cut, 0, torch.device("cpu"))


def moved(policy: PeftModel) -> PeftModel:
    generator = torch.Generator().manual_seed(3)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data += NOISE * torch.randn(parameter.shape, generator=generator)
    return policy


def on_ranks(config: Config, policy: PeftModel, rollout: Rollout) -> Tensor:
    """g~ in float64 and one dimension: the sum of what the ranks hand to their engines."""
    engine = CapoEngine(policy, config, 10, Path(config.train.output_dir))
    parts: list[list[Tensor]] = []
    apply = engine.apply

    def recorded(partial_gradient: list[Tensor]) -> float:
        parts.append([tensor.clone() for tensor in partial_gradient])
        return apply(partial_gradient)

    engine.apply = recorded
    learner = Learner(config, engine, "device", PhaseTimer())
    advantages = torch.tensor(ADVANTAGES)
    rows = torch.arange(len(rollout)).view(-1, 2)
    mine = rows[comm.rank() :: comm.world_size()].flatten()
    learner.update(learner.prepare(rollout.take(mine), advantages[mine], mine), number=0)
    total = torch.cat([tensor.flatten() for tensor in parts[0]])
    dist.all_reduce(total)
    return total.double()


def reference(config: Config, policy: PeftModel, rollout: Rollout) -> Tensor:
    """The same of definitions alone: g_i is A_i times the gradient of sample i's mean
    log-probability (on the policy that sampled, the ratio's slope is that of the logarithm)."""
    policy.double()
    base = cast(PreTrainedModel, policy.get_base_model())
    base.set_experts_implementation("eager")  # others have no float64
    parameters = [p for p in policy.parameters() if p.requires_grad]
    without = taken(base, use_cache=False)
    gradients = []
    for row, advantage in enumerate(ADVANTAGES):
        completion = rollout.completion_ids[row][rollout.completion_mask[row]]
        ids = torch.cat([rollout.prompt_ids[row][rollout.prompt_mask[row]], completion])
        logits = policy(input_ids=ids[None], **without).logits[0, -len(completion) - 1 : -1]
        chosen = (logits / config.rollout.temperature).log_softmax(-1)
        value = advantage * chosen.gather(1, completion[:, None]).mean()
        parts = torch.autograd.grad(value, parameters)
        gradients.append(torch.cat([part.flatten() for part in parts]))
    matrix = torch.stack(gradients).double()
    gram = (matrix @ matrix.T).numpy()
    answer = aggregate("capo", gram, np.array(ADVANTAGES), radius=RADIUS)
    return torch.from_numpy(np.asarray(answer.weights)) @ matrix


if __name__ == "__main__":
    main()
