"""Per-sample LoRA gradients in a loop of one's own: no DeepSpeed, no process group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from capo_ds.gradients.per_sample import Pass, PerSampleGradients
from capo_ds.gradients.store import GradientStore, HostStore

STORES = {"device": GradientStore, "host": HostStore}


@contextmanager
def per_sample_gradients(
    model: nn.Module, store: str = "device", dtype: torch.dtype = torch.float32
) -> Iterator[Gradients]:
    """Inside, each backward pass through the model also leaves every sample's own gradient.

    Forward and backward passes are made as ever: of micro-batches (B, T) in which a row is a
    sample, with losses that each depend on their own row, `losses.sum().backward()`. Passes without
    gradients (a reference, `generate`) are left alone. The weights' `.grad` is what it would be
    without this, until `Gradients.combine` sets it. It works by hooks, which are gone at the end;
    what was gathered stays. Not under torch.compile; in one process.

    Args:
        model: of PEFT, or any other with LoRA layers of its, of which nothing else is trained.
        store: where the gradients are kept, `device` or `host` (pinned memory, beside a GPU).
        dtype: what they are kept in; wider for wider weights in float32.

    Raises:
        ValueError: if there is no LoRA factor that is trained, or something else is.
        RuntimeError: from a pass in which a sample's gradient cannot be told.
    """
    if store not in STORES:
        raise ValueError(f"store must be one of {', '.join(STORES)}, got {store!r}")
    hooks = PerSampleGradients(model, dropout=True)
    try:
        _check_trained(hooks)
        gradients = Gradients(hooks, store, dtype)
        with hooks.listening(gradients._receive):
            yield gradients
    finally:
        hooks.remove()


class Gradients:
    """What `per_sample_gradients` gathers: N samples in the order of their forward passes."""

    def __init__(self, hooks: PerSampleGradients, store: str, dtype: torch.dtype):
        self._hooks, self._kind = hooks, STORES[store]
        self._device = hooks.parameters[0].device
        self._dtype = dtype
        if dtype == torch.float32:
            self._dtype = torch.promote_types(dtype, hooks.parameters[0].dtype)
        self.clear()

    def __len__(self) -> int:
        """N, the samples that were gone back through since the last `clear`."""
        return sum(one.samples for one in self._passes)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The LoRA factors, in the order of `rows`."""
        return [cast(nn.Parameter, parameter) for parameter in self._hooks.parameters]

    def clear(self) -> None:
        """Forget all samples."""
        self._stores: dict[Pass, GradientStore] = {}
        self._gram: np.ndarray | None = None

    def rows(self) -> Iterator[Tensor]:
        """Of each LoRA factor (o, i) in turn, its gradients (N, o, i), one a sample."""
        stores = self._whole()
        for shape, parts in zip(
            self._hooks.shapes, zip(*(one.matrices() for one in stores), strict=True), strict=True
        ):
            yield torch.cat(parts).unflatten(1, shape)

    def gram(self) -> np.ndarray:
        """(N, N) float64, the inner products of all samples' gradients.

        Products in float32 (or wider), their sum over the factors in float64.
        """
        if self._gram is None:
            count = len(self)
            gram = torch.zeros(count, count, dtype=torch.float64, device=self._device)
            for rows in self.rows():
                matrix = rows.flatten(1)
                matrix = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
                gram += matrix @ matrix.T
            self._gram = ((gram + gram.T) / 2).cpu().numpy()
        return self._gram.copy()

    def combine(self, weights: ArrayLike | Tensor) -> None:
        """Set each factor's `.grad` to sum_i weights_i g_i; an optimizer's step is next.

        weights: (N,). Of equal ones, 1/N each, it is the gradient of the mean loss. A sample that
        is not finite by the Gram matrix is left out where its weight is 0.

        Raises:
            ValueError: if they are not N finite numbers.
        """
        stores = self._whole()
        given = torch.as_tensor(weights).detach().to(self._device, torch.float64)
        told = f"weights must be {len(self)} finite numbers, one a sample, got"
        if given.shape != (len(self),):
            raise ValueError(f"{told} shape {tuple(given.shape)}")
        if not given.isfinite().all():
            worst = int((~given.isfinite()).nonzero()[0])
            raise ValueError(f"{told} {float(given[worst])} for sample {worst}")
        parts = given.split([one.samples for one in self._passes])
        self._discard(stores, parts)
        sums = [one.combine(part) for one, part in zip(stores, parts, strict=True)]
        for parameter, totals in zip(self._hooks.parameters, zip(*sums, strict=True), strict=True):
            parameter.grad = torch.stack(totals).sum(0).to(parameter)

    @property
    def _passes(self) -> list[Pass]:
        return sorted(self._stores, key=lambda one: one.number)

    def _receive(self, one: Pass, index: int, output_gradients: Tensor, inputs: Tensor) -> None:
        """A factor's gradients of one pass."""
        self._hooks.note(one, index)
        if one not in self._stores:
            self._stores[one] = self._kind(
                self._hooks.shapes, one.samples, self._device, self._dtype
            )
            self._gram = None
        self._stores[one].write(index, 0, output_gradients, inputs)

    def _whole(self) -> list[GradientStore]:
        """The stores of all passes, once it is known that they are filled."""
        if not self._stores:
            raise RuntimeError(
                "no sample yet: make a forward pass of the model and losses.sum().backward() "
                "inside of per_sample_gradients"
            )
        for one in self._passes:
            self._hooks.check_whole(one)
        return [self._stores[one] for one in self._passes]

    def _discard(self, stores: Sequence[GradientStore], parts: Sequence[Tensor]) -> None:
        """Keep the NaN of samples of weight 0 out of the sum."""
        if self._gram is None or np.isfinite(self._gram).all():
            return
        finite = torch.from_numpy(np.isfinite(np.diag(self._gram)))
        sizes = [len(part) for part in parts]
        for one, part, kept in zip(stores, parts, finite.split(sizes), strict=True):
            one.discard((part.cpu() == 0) & ~kept)


def _check_trained(hooks: PerSampleGradients) -> None:
    if not hooks.factors:
        raise ValueError("the model has no active LoRA layers; make it one by peft.get_peft_model")
    for name, parameter in zip(hooks.names, hooks.parameters, strict=True):
        if not parameter.requires_grad:
            raise ValueError(
                f"the LoRA factors of {name} are frozen; load the adapter with is_trainable=True, "
                "or make them require gradients"
            )
