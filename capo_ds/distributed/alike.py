"""The ranks' copies of one model, before its weights are shared out: tied alike, and of the same
tensors. Where they are not, the ranks would wait for each other in different collectives."""

from __future__ import annotations

import hashlib
from itertools import zip_longest

from torch import nn

from capo_ds.config import ConfigError
from capo_ds.distributed import comm


def make_alike(model: nn.Module) -> None:
    """Tie the weights that rank 0 has tied, and compare what there is to share out (all ranks).

    transformers ties two weights that are both in the file where their values are equal, which a
    rank that has them on torch's meta device cannot see.

    Raises:
        ConfigError: on all ranks, if their models differ.
    """
    _tie(model, comm.broadcast(_tied(model)))
    own = _tensors(model)
    digest = hashlib.sha256(repr(own).encode()).hexdigest()
    if len(set(comm.gather(digest))) > 1:
        raise ConfigError(_difference(comm.gather(own)))


def _tied(model: nn.Module) -> list[list[str]]:
    """Groups of names that are of one parameter."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    return [group for group in names.values() if len(group) > 1]


def _tie(model: nn.Module, groups: list[list[str]]) -> None:
    own = dict(model.named_parameters(remove_duplicate=False))
    for first, *others in groups:
        for name in others:
            if first in own and name in own:  # or the comparison tells
                module, _, last = name.rpartition(".")
                setattr(model.get_submodule(module), last, own[first])


def _tensors(model: nn.Module) -> list[str]:
    """Of all weights and buffers, once each: name, shape and dtype."""
    tensors = [*model.named_parameters(), *model.named_buffers(remove_duplicate=False)]
    return [f"{name} {list(tensor.shape)} {tensor.dtype}" for name, tensor in tensors]


def _difference(ranks: list[list[str]]) -> str:
    """Of the first rank whose model is not rank 0's: the first tensor that differs."""
    rank = next(number for number, tensors in enumerate(ranks) if tensors != ranks[0])
    pairs = zip_longest(ranks[0], ranks[rank], fillvalue="nothing more")
    first, other = next((one, two) for one, two in pairs if one != two)
    return (
        f"model.path: the ranks have loaded different models, so ZeRO 3 cannot share out the "
        f"weights: where rank 0 has {first}, rank {rank} has {other}; see that the folder is the "
        "same on all machines, with the same version of transformers"
    )
