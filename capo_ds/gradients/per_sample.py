"""Per-sample LoRA gradients from one batched forward and backward pass.

A LoRA factor W (o x i) maps x (B, T, i) to y = x W' (B, T, o), so the gradient of sample b's own
objective with respect to W is sum_t (dJ/dy_bt) x_bt' : the matrix product that autograd would do,
without its sum over the batch. A `_Tap` behind each factor does it in the backward pass. It keeps
x as a saved tensor, so gradient checkpointing recomputes it rather than keeping it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from capo_ds.config import ConfigError
from capo_ds.gradients.store import Store

NAMED = 3  # of the layers that are not used, how many are named


@dataclass(eq=False)
class Pass:
    """One forward pass of the model.

    Attributes:
        number: passes count up.
        samples, tokens: of its batch.
        seen: the factors whose gradients have come back from it.
    """

    number: int = 0
    samples: int = 0
    tokens: int = 0
    seen: set[int] = field(default_factory=set)


# Is given a pass, the number of a factor, and by sample its output's gradients and its inputs.
Sink = Callable[[Pass, int, Tensor, Tensor], None]


class PerSampleGradients:
    """Hooks on every LoRA factor of a PEFT model; forward passes run as ever.

    dropout: allow LoRA dropout; the gradients are those of the network that a pass draws.

    Raises:
        ConfigError: if a trainable parameter is not the weight of a plain linear LoRA factor.
    """

    def __init__(self, policy: nn.Module, dropout: bool = False):
        self.names, self.factors = _lora_factors(policy, dropout)
        self.parameters = [factor.weight for factor in self.factors]
        self.shapes = [(factor.out_features, factor.in_features) for factor in self.factors]
        self._anchor: Tensor | None = None
        self._sink: Sink | None = None
        # The one that layers run in: the latest, or one that is gone back through.
        self._pass = Pass()
        self._passes = 0
        self._known_as = next(_numbers)
        _instances[self._known_as] = self
        self._hooks = [policy.register_forward_pre_hook(self._begin_pass, with_kwargs=True)]
        self._hooks.append(policy.register_forward_hook(self._end_pass))
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
        whole = Pass()  # all that `objectives` runs

        def write(_: Pass, index: int, output_gradients: Tensor, inputs: Tensor) -> None:
            self.note(whole, index)
            if store is not None:
                store.write(index, first, output_gradients, inputs)

        # Every tap takes the anchor as an input: asking autograd for the anchor's gradient runs
        # all taps, and none of the sums over the batch that the weights' own gradients need (which
        # a compiled layer would make all the same if they could be asked for).
        self._anchor = torch.zeros((), device=self.parameters[0].device, requires_grad=True)
        try:
            with self._weights_fixed(), self.listening(write):
                values = objectives()
                torch.autograd.grad(values.sum(), self._anchor, allow_unused=True)
        finally:
            self._anchor = None
        self.check_whole(whole)
        return values.detach()

    @contextmanager
    def _weights_fixed(self) -> Iterator[None]:
        for weight in self.parameters:
            weight.requires_grad_(False)
        try:
            yield
        finally:
            for weight in self.parameters:
                weight.requires_grad_(True)

    @contextmanager
    def listening(self, sink: Sink) -> Iterator[None]:
        """What goes back through forward passes that are made inside reaches the sink."""
        self._sink = sink
        try:
            yield
        finally:
            self._sink = None

    def note(self, one: Pass, index: int) -> None:
        """Count a factor's gradient; RuntimeError if the pass has had one from it before."""
        if index in one.seen:
            raise RuntimeError(
                f"{self.names[index]} is used twice in one forward pass: layers that share "
                "their weights have no LoRA gradient per sample; leave it out of "
                "model.lora_targets (or: one pass was gone back through twice)"
            )
        one.seen.add(index)

    def check_whole(self, one: Pass) -> None:
        """RuntimeError unless a gradient has come back from every factor."""
        if len(one.seen) != len(self.factors):
            missing = sorted({name for i, name in enumerate(self.names) if i not in one.seen})
            raise RuntimeError(
                f"only {len(one.seen)} of {len(self.factors)} LoRA factors were used: not those of "
                f"{', '.join(missing[:NAMED])}, ...: the model does not call these layers, or "
                "takes no more than a ranking from them; name them in model.lora_exclude"
            )

    def _begin_pass(self, _: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if not torch.is_grad_enabled():
            return  # a reference's pass between a pass and its backward, which may run it anew
        given = (kwargs.get("input_ids"), kwargs.get("inputs_embeds"), *args)
        batch = next(value for value in given if value is not None)
        self._passes += 1
        self._pass = Pass(self._passes, *batch.shape[:2])

    def _end_pass(self, _: nn.Module, __: Any, output: Any) -> None:
        """Checkpointed layers run again on the way back, when another pass may be the latest."""
        if not torch.is_grad_enabled():
            return
        one = self._pass

        def goes_back(_: Tensor) -> None:
            self._pass = one

        for value in _tensors(output):
            if value.requires_grad:
                value.register_hook(goes_back)

    def _by_sample(self, one: Pass, index: int, values: Tensor) -> Tensor:
        """Inputs or output gradients of a factor as (batch, its tokens, features).

        Layers may see tokens in more dimensions than one (latent attention: one per head), or
        those of all samples in one row (routers). Where each token stands does not matter, only
        whose it is. Raises `RuntimeError` where that is not told by the shape.
        """
        samples, tokens = one.samples, one.tokens
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
        # A tensor: compiled code takes it as an argument, and so all layers share the code.
        place = torch.tensor([self._known_as, index])

        def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor | None:
            if self._anchor is not None and torch.compiler.is_compiling():
                return _CompiledTap.apply(output, inputs[0], self._anchor, place)
            if self._sink is None or not torch.is_grad_enabled():
                return None
            self._by_sample(self._pass, index, output)  # raises while the stack shows the layer
            receive = partial(self._receive, self._sink, self._pass, index)
            return _Tap.apply(output, inputs[0], self._anchor, receive)

        return hook

    def receive_compiled(self, index: int, inputs: Tensor, output_gradients: Tensor) -> None:
        """From the backward pass of compiled layers."""
        assert self._sink is not None  # set as long as there is an anchor
        self._receive(self._sink, self._pass, index, inputs, output_gradients)

    def _receive(
        self, sink: Sink, one: Pass, index: int, inputs: Tensor, output_gradients: Tensor
    ) -> None:
        by_sample = partial(self._by_sample, one, index)
        sink(one, index, by_sample(output_gradients), by_sample(inputs))


class _Tap(torch.autograd.Function):
    """The identity on a factor's output; its backward hands on (input, output gradient)."""

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, inputs: Tensor, anchor: Tensor | None, receive: Any
    ) -> Tensor:
        ctx.save_for_backward(inputs)
        ctx.receive = receive
        return output.view_as(output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (inputs,) = ctx.saved_tensors
        ctx.receive(inputs, gradient)
        return gradient, None, None, None


# A compiled graph cannot hold a call of Python, but one of an operator, which finds its way back by
# numbers.
_numbers = count()
_instances: WeakValueDictionary[int, PerSampleGradients] = WeakValueDictionary()
_LIBRARY = torch.library.Library("capo_ds", "DEF")
_LIBRARY.define("receive(Tensor inputs, Tensor output_gradients, Tensor place) -> Tensor")


@torch.library.impl(_LIBRARY, "receive", "CompositeExplicitAutograd")
def _receive_compiled(inputs: Tensor, output_gradients: Tensor, place: Tensor) -> Tensor:
    """Returns what the tap adds to the anchor's gradient: 0, without which it would not be run."""
    known_as, index = place.tolist()
    _instances[known_as].receive_compiled(index, inputs, output_gradients)
    return output_gradients.new_zeros(())


@torch.library.register_fake("capo_ds::receive", lib=_LIBRARY)
def _received(inputs: Tensor, output_gradients: Tensor, place: Tensor) -> Tensor:
    return output_gradients.new_empty(())


class _CompiledTap(torch.autograd.Function):
    """`_Tap` as a compiler can trace it. place: of the factor, (2,) on the CPU."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, inputs: Tensor, anchor: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, place)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, Tensor, None]:
        inputs, place = ctx.saved_tensors
        return gradient, None, torch.ops.capo_ds.receive(inputs, gradient, place), None


def _tensors(output: Any) -> Iterator[Tensor]:
    """Those of a model's output, whatever it is packed in."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping | tuple | list):
        for value in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors(value)


def _lora_factors(policy: nn.Module, dropout: bool) -> tuple[list[str], list[nn.Linear]]:
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
            if getattr(module, "use_dora", {}).get(adapter):
                raise ConfigError(f"{name}: DoRA has no per-sample gradients; set use_dora=False")
            if _drops(module, adapter) and not dropout:
                raise ConfigError(
                    f"{name}: LoRA dropout: every pass must be of one network; set lora_dropout=0"
                )
            factors += pair
            names += 2 * [name.removeprefix("base_model.model.")]
    known = {id(factor.weight) for factor in factors}
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad and id(parameter) not in known:
            raise ConfigError(f"{name} is trainable but no LoRA factor; only those can be trained")
    return names, factors


def _drops(module: LoraLayer, adapter: str) -> bool:
    return getattr(module.lora_dropout[adapter], "p", 0.0) > 0
