"""Per-sample LoRA gradients from one batched forward and backward pass.

A LoRA factor W (o x i) maps x (B, T, i) to y = x W' (B, T, o), so the gradient of sample b's own
objective with respect to W is sum_t (dJ/dy_bt) x_bt' : the matrix product that autograd would do,
without its sum over the batch. A `_Tap` behind each factor does it in the backward pass. It keeps
x as a saved tensor, so gradient checkpointing recomputes it rather than keeping it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from capo_ds.config import ConfigError
from capo_ds.gradients.store import Store

NAMED = 3  # of the layers that are not used, how many are named


class PerSampleGradients:
    """Hooks on every LoRA factor of a PEFT model; forward passes run as ever.

    Raises:
        ConfigError: if a trainable parameter is not the weight of a plain linear LoRA factor.
    """

    def __init__(self, policy: PeftModel):
        self.names, self.factors = _lora_factors(policy)
        self.parameters = [factor.weight for factor in self.factors]
        self.shapes = [(factor.out_features, factor.in_features) for factor in self.factors]
        self._anchor: Tensor | None = None
        self._sink: Callable[[int, Tensor, Tensor], None] | None = None
        self._batch = (0, 0)  # samples and tokens of the pass
        self._hooks = [policy.register_forward_pre_hook(self._note_batch, with_kwargs=True)]
        self._hooks += [
            factor.register_forward_hook(self._hook(index))
            for index, factor in enumerate(self.factors)
        ]

    def remove(self) -> None:
        """Take the hooks off the model again."""
        for hook in self._hooks:
            hook.remove()

    def backward(
        self, objectives: Callable[[], Tensor], store: Store | None, first: int = 0
    ) -> Tensor:
        """Hand the gradients of a micro-batch to the store, as samples `first`, `first + 1`, ...

        objectives: runs the forward pass and returns (B,), each sample's own objective.
        store: None for a pass that is only made because other ranks make one (ZeRO 3).
        Returns the objectives, detached. Weights get no `.grad`.
        """
        seen: set[int] = set()

        def write(index: int, inputs: Tensor, output_gradients: Tensor) -> None:
            if index in seen:
                raise RuntimeError(
                    f"{self.names[index]} is used twice in one forward pass: layers that share "
                    "their weights have no LoRA gradient per sample; leave it out of "
                    "model.lora_targets"
                )
            seen.add(index)
            if store is not None:
                rows = self._by_sample(index, output_gradients), self._by_sample(index, inputs)
                store.write(index, first, *rows)

        # Every tap takes the anchor as an input: asking autograd for the anchor's gradient runs
        # all taps, and none of the sums over the batch that the weights' own gradients need.
        self._anchor = torch.zeros((), device=self.parameters[0].device, requires_grad=True)
        self._sink = write
        try:
            values = objectives()
            torch.autograd.grad(values.sum(), self._anchor, allow_unused=True)
        finally:
            self._anchor = self._sink = None
        if len(seen) != len(self.factors):
            names = sorted({self.names[i] for i in range(len(self.factors)) if i not in seen})
            raise RuntimeError(
                f"only {len(seen)} of {len(self.factors)} LoRA factors were used: not those of "
                f"{', '.join(names[:NAMED])}, ...: the model does not call these layers; leave "
                "them out of model.lora_targets"
            )
        return values.detach()

    def _note_batch(self, _: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        self._batch = (ids.shape[0], ids.shape[1])

    def _by_sample(self, index: int, values: Tensor) -> Tensor:
        """Inputs or output gradients of a factor as (batch, its tokens, features).

        Layers may see tokens in more dimensions than one (latent attention: one per head), or
        those of all samples in one row (routers). Where each token stands does not matter, only
        whose it is. Raises `RuntimeError` where that is not told by the shape.
        """
        samples, tokens = self._batch
        if values.dim() >= 3 and values.shape[0] == samples:
            return values if values.dim() == 3 else values.flatten(1, -2)
        if values.dim() == 2 and values.shape[0] == samples * tokens:
            return values.unflatten(0, (samples, tokens))
        raise RuntimeError(
            f"{self.names[index]} is called with {tuple(values.shape)}, not (batch, tokens, "
            f"features), in a pass of {samples} samples of {tokens} tokens: whose tokens these are "
            "cannot be told (an expert that gets the tokens routed to it?); leave it out of "
            "model.lora_targets"
        )

    def _hook(self, index: int) -> Callable[..., Tensor | None]:
        def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor | None:
            if self._anchor is None:
                return None
            self._by_sample(index, output)  # raises while the stack shows the layer
            return _Tap.apply(output, inputs[0], self._anchor, self._sink, index)

        return hook


class _Tap(torch.autograd.Function):
    """The identity on a factor's output; its backward hands on (input, output gradient)."""

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, inputs: Tensor, anchor: Tensor, sink: Any, index: int
    ) -> Tensor:
        ctx.save_for_backward(inputs)
        ctx.sink, ctx.index = sink, index
        return output.view_as(output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        (inputs,) = ctx.saved_tensors
        ctx.sink(ctx.index, inputs, gradient)
        return gradient, None, None, None, None


def _lora_factors(policy: PeftModel) -> tuple[list[str], list[nn.Linear]]:
    """The factors, and the names of the layers that each belongs to."""
    names, factors = [], []
    for name, module in policy.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        for adapter in module.active_adapters:
            if adapter not in module.lora_A:
                raise ConfigError(f"model.lora_targets: {name} is not a linear layer")
            pair = [module.lora_A[adapter], module.lora_B[adapter]]
            if not all(type(factor) is nn.Linear and factor.bias is None for factor in pair):
                raise ConfigError(f"model.lora_targets: {name} is not a linear layer")
            if getattr(module, "use_dora", {}).get(adapter) or _drops(module, adapter):
                raise ConfigError(f"{name}: DoRA and LoRA dropout have no per-sample gradients")
            factors += pair
            names += 2 * [name.removeprefix("base_model.model.")]
    known = {id(factor.weight) for factor in factors}
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad and id(parameter) not in known:
            raise ConfigError(f"{name} is trainable but no LoRA factor; only those can be trained")
    return names, factors


def _drops(module: LoraLayer, adapter: str) -> bool:
    return getattr(module.lora_dropout[adapter], "p", 0.0) > 0
