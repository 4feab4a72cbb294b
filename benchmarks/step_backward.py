"""The backward pass of one micro-batch, by several ways to every sample's own gradient."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from step_shapes import Size, in_turns, random_responses, settings
from torch import Tensor
from torch.func import functional_call, grad, vmap

from capo_ds.distributed import comm
from capo_ds.gradients.per_sample import PerSampleGradients
from capo_ds.gradients.store import GradientStore
from capo_ds.models import load_policy, token_log_probs
from capo_ds.rollout.rollout import Rollout


def backward_passes(size: Size, model: Path, repeats: int) -> dict[str, float]:
    policy = load_policy(settings(size, model, {}).model, seed=0).to(comm.device()).train()
    for parameter in policy.parameters():
        if parameter.requires_grad:  # B = 0 would leave the gradients of A at 0
            torch.nn.init.normal_(parameter, std=0.02)
    batch = random_responses(size).take(range(size.micro_batch))
    per_sample = PerSampleGradients(policy)
    store = GradientStore(per_sample.shapes, size.micro_batch, comm.device())
    one_each = [torch.empty_like(rows) for rows in store.rows]

    def objectives(part: Rollout = batch) -> Tensor:
        arguments = part.input_ids(), part.attention_mask(), part.completion_mask
        return token_log_probs(policy, *arguments, temperature=1.0).sum(1)

    def one_by_one() -> list[Tensor]:
        for row in range(size.micro_batch):
            value = objectives(batch.take([row])).sum()
            gradients = torch.autograd.grad(value, per_sample.parameters)
            for rows, gradient in zip(one_each, gradients, strict=True):
                rows[row] = gradient
        return one_each

    def ours() -> list[Tensor]:
        per_sample.backward(objectives, store, first=0)
        return store.rows

    variants = {
        "ordinary": lambda: torch.autograd.grad(objectives().sum(), per_sample.parameters),
        "per-sample gradients": ours,
        "one backward per sample": one_by_one,
        "torch.func.vmap(grad)": vmap_of_grad(policy, batch),
    }
    if size.dtype == "bfloat16":  # what vmap and Opacus do not get through in this memory
        del variants["torch.func.vmap(grad)"]
    for name in list(variants)[2:]:
        check_equal(name, variants[name](), ours())
    seconds = in_turns(variants, repeats)
    if size.dtype == "float32" and (opacus := opacus_pass(policy, batch, per_sample)):
        # Last, with an ordinary pass of its own: its hooks would stay on the model of the others.
        check_equal("Opacus", opacus(), ours())
        alone = in_turns({"ordinary": variants["ordinary"], "Opacus": opacus}, repeats)
        seconds["Opacus"] = seconds["ordinary"] * alone["Opacus"] / alone["ordinary"]
    return seconds


def plain_objectives(logits: Tensor, completions: Tensor) -> Tensor:
    """(B,) sums of log-probabilities as one writes them down, from logits (B, P + T, V)."""
    length = completions.shape[-1]
    log_probs = logits[..., -length - 1 : -1, :].float().log_softmax(-1)
    return log_probs.gather(-1, completions[..., None]).squeeze(-1).sum(-1)


def vmap_of_grad(policy: PeftModel, batch: Rollout) -> Callable[[], list[Tensor]]:
    trained = {n: p.detach() for n, p in policy.named_parameters() if p.requires_grad}

    def objective(parameters: dict[str, Tensor], ids: Tensor, completion: Tensor) -> Tensor:
        inputs = {"input_ids": ids[None], "use_cache": False}
        logits = functional_call(policy, parameters, (), inputs).logits[0]
        return plain_objectives(logits, completion)

    gradients = vmap(grad(objective), in_dims=(None, 0, 0))
    return lambda: list(gradients(trained, batch.input_ids(), batch.completion_ids).values())


def opacus_pass(
    policy: PeftModel, batch: Rollout, per_sample: PerSampleGradients
) -> Callable[[], list[Tensor]] | None:
    try:
        from opacus.grad_sample import GradSampleModule
    except ImportError:
        print("Opacus is not installed and left out")
        return None
    module = GradSampleModule(policy, loss_reduction="sum", strict=False)

    parameters: list[Any] = per_sample.parameters  # Opacus gives them a grad_sample

    def run() -> list[Tensor]:
        for parameter in parameters:
            parameter.grad_sample = parameter.grad = None
        logits = module(input_ids=batch.input_ids(), use_cache=False).logits
        plain_objectives(logits, batch.completion_ids).sum().backward()
        return [parameter.grad_sample for parameter in parameters]

    return run


def check_equal(name: str, theirs: list[Tensor], ours: list[Tensor]) -> None:
    for index, (one, other) in enumerate(zip(theirs, ours, strict=True)):
        error = (one - other).norm() / other.norm()
        if not error < (2e-3 if one.dtype == torch.float32 else 5e-2):
            raise AssertionError(f"{name} differs at factor {index} by {error:.1e}")
