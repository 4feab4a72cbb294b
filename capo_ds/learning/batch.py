"""One rank's responses on their way through an update."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from torch import Tensor

from capo_ds.rollout.rollout import TOKEN, Rollout, Rows

Heard = dict[int, dict[str, float | None]]  # what became of a response, by its number


@dataclass
class Batch(Rollout):
    """A rollout with what stays fixed over the updates that it serves."""

    advantages: Tensor  # (n,)
    behaviour: Tensor = field(metadata=TOKEN)  # log-probabilities under the sampling policy
    reference: Tensor = field(metadata=TOKEN)  # and under the reference
    numbers: Tensor  # (n,) of the response within the step, over all ranks; a group's follow on

    def weighted(self, weights: Tensor) -> WeightedBatch:
        """The samples of one update. weights: (n,) of their tokens, see `token_weights`."""
        return WeightedBatch(**vars(self), weights=weights)


@dataclass
class WeightedBatch(Batch):
    """Samples of an update, each with its own objective J_i = w_i sum_t term_it."""

    weights: Tensor  # (n,) w


def idle(batch: Rows) -> Rows:
    """One row that no objective counts, for a pass in which this rank has nothing to do."""
    row = {item.name: getattr(batch, item.name).new_zeros(1, 1) for item in fields(batch)}
    flat = {item.name for item in fields(batch) if not item.metadata}
    return type(batch)(**{name: v.flatten() if name in flat else v for name, v in row.items()})
