"""Rows of a decoding cache, of whatever class: keys, values, convolution and recurrent states."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

POSITION_DIMS = 3  # planes (time, height, width), rows, tokens


def select_rows(cache: Any, rows: int, indices: Tensor) -> None:
    """Leave those rows of the cache that `indices` names, in that order; a row may come twice.

    Caches of hybrid models have no method for it that works (huggingface/transformers#48305). But
    all hold tensors whose first dimension is the batch, in lists, dictionaries and attributes:
    each is replaced by its selection, in place of the old one. (Positions in three planes, which
    Qwen4-Exp's cache keeps, have it second.)

    rows: of the batch, before.
    Raises:
        ValueError: if a tensor with more dimensions than one is not of so many rows, or there is
            none at all.
    """
    selected: dict[int, tuple[Tensor, Tensor]] = {}  # by identity: caches may share tensors

    def select(tensor: Tensor, name: str) -> Tensor:
        batch = 1 if name == "position_ids" and tensor.dim() == POSITION_DIMS else 0
        if tensor.dim() == 0 or (tensor.dim() == 1 and len(tensor) != rows):
            return tensor  # lengths and counters
        if tensor.shape[batch] != rows:
            if not tensor.numel():
                return tensor  # what is not there yet; a buffer without tokens has its rows
            raise ValueError(f"a tensor of shape {tuple(tensor.shape)} in a cache of {rows} rows")
        if id(tensor) not in selected:
            selected[id(tensor)] = tensor, tensor.index_select(batch, indices)
        return selected[id(tensor)][1]

    _replace(cache, select, set())
    if not selected:
        raise ValueError(f"no tensors in a cache of class {type(cache).__name__}")


def _replace(holder: Any, change: Any, visited: set[int], named: str = "") -> Any:
    """Every tensor below `holder` by what `change` makes of it; containers keep their identity.

    named: the attribute that it was found in.
    """
    if isinstance(holder, Tensor):
        return change(holder, named)
    if id(holder) in visited:
        return holder
    visited.add(id(holder))
    if isinstance(holder, tuple):
        parts = [_replace(part, change, visited) for part in holder]
        return type(holder)(*parts) if hasattr(holder, "_fields") else type(holder)(parts)
    if isinstance(holder, list):
        holder[:] = [_replace(part, change, visited) for part in holder]
    elif isinstance(holder, dict):
        for key, part in list(holder.items()):
            holder[key] = _replace(part, change, visited)
    elif _is_cache(holder):
        for name, part in list(vars(holder).items()):
            if isinstance(part, Tensor | list | dict | tuple) or _is_cache(part):
                setattr(holder, name, _replace(part, change, visited, name))
    return holder


def _is_cache(value: Any) -> bool:
    """An object of a modelling library's own, but neither a module nor a config."""
    return (
        hasattr(value, "__dict__")
        and not isinstance(value, type | torch.nn.Module)
        and any("Cache" in kind.__name__ or "Layer" in kind.__name__ for kind in type(value).mro())
    )
