"""A surrogate of the user's: called so that what fails is told under its name, and checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from capo_ds.objectives.base import Surrogate, Tokens
from capo_ds.own_code import PartError, as_it_was
from capo_ds.plugins import what

if TYPE_CHECKING:
    from capo_ds.config import ObjectiveConfig


class OwnObjective:
    """The part behind `objective.name: file.py:NAME`; raises `PartError` for all that it does
    wrong."""

    def __init__(self, name: str, part: Callable[..., Any]):
        self._told, self._part = f"objective.name: {name}", part

    def __call__(self, tokens: Tokens, settings: ObjectiveConfig) -> Surrogate:
        with _told_under(self._told):
            given = self._part(tokens, settings)
        try:
            return checked(given, tokens.log_probs)
        except ValueError as error:
            raise PartError(f"{self._told}: {error}") from error

    @property
    def has_advantages(self) -> bool:
        return hasattr(self._part, "advantages")

    def advantages(self, rewards: Tensor) -> Tensor:
        """(prompts, G), as its method of that name gives them of rewards (prompts, G)."""
        with _told_under(self._told):
            values = torch.as_tensor(self._part.advantages(rewards.clone()), dtype=rewards.dtype)
        if values.shape != rewards.shape or not values.isfinite().all():
            shape = tuple(values.shape)
            told = "are NaN or Inf in part" if values.shape == rewards.shape else f"are of {shape}"
            raise PartError(
                f"{self._told}: its advantages must be {tuple(rewards.shape)} finite numbers, one "
                f"a reward; they {told}"
            )
        return values


@contextmanager
def _told_under(name: str) -> Iterator[None]:
    try:
        with as_it_was():
            yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the user's code may raise anything, sys.exit too
        raise PartError(f"{name}: {what(error)}") from error


def checked(given: Any, log_probs: Tensor) -> Surrogate:
    """What a surrogate gives of log-probabilities (B, T), with terms and marks (B, T); terms alone
    are taken as well, and (B, 1) of responses. Raises `ValueError`."""
    given = given if isinstance(given, Surrogate) else Surrogate(given)
    value = _of_tokens("surrogate", "terms", given.value, log_probs)
    if log_probs.requires_grad and not value.requires_grad:
        raise ValueError("the surrogate has no gradient: make it of tokens.log_probs, not detached")
    marks = (
        mark if mark is None else _of_tokens(name, "marks", mark, log_probs).detach().bool()
        for name, mark in (("clipped", given.clipped), ("silent", given.silent))
    )
    return Surrogate(value, *marks)


def _of_tokens(name: str, what: str, value: Any, log_probs: Tensor) -> Tensor:
    rows, width = log_probs.shape
    shape = tuple(getattr(value, "shape", ()))
    if not isinstance(value, Tensor) or shape not in ((rows, width), (rows, 1)):
        raise ValueError(
            f"the {name} must be a tensor of {(rows, width)} {what}, or of {(rows, 1)}, and is "
            f"{f'one of {shape}' if isinstance(value, Tensor) else type(value).__name__}"
        )
    return value.expand(rows, width)
