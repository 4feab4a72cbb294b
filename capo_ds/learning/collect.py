"""Per-sample gradients of a rank's samples, into a store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from capo_ds.distributed import comm
from capo_ds.gradients.per_sample import PerSampleGradients
from capo_ds.gradients.sketch import Sketch
from capo_ds.gradients.store import GradientStore, HostStore, Shapes, SketchStore, Store
from capo_ds.learning.batch import WeightedBatch
from capo_ds.learning.passes import PolicyPasses
from capo_ds.telemetry.metrics import Measured


@dataclass(frozen=True)
class Collected:
    """The gradients g_i of a rank's samples, kept in a store.

    live: (n,) of bool, some token of the sample has a policy gradient. Where none has (all may be
    clipped), what remains of g_i is the KL term's: it counts in g_0, but the program must neither
    align with it nor keep away from it.
    """

    store: Store
    live: Tensor
    measures: list[Measured]


class Stores:
    """Makes the store of each update, in the memory of the one before.

    kind: device, host or recompute. dtype: of the gradients that are kept.
    """

    def __init__(self, kind: str, dtype: torch.dtype, shapes: Shapes):
        self.shapes, self._dtype = shapes, dtype
        self._make = {"device": GradientStore, "host": HostStore, "recompute": None}[kind]
        self._space = self._make and self._make.new_space(comm.device(), dtype)

    def new(
        self,
        samples: int,
        sketch: Sketch | None,
        weighted_sum: Callable[[Tensor], list[Tensor]],
    ) -> Store:
        """An empty store; what was made before is gone.

        weighted_sum: from (n,) coefficients sum_i c_i g_i by a second backward pass, for recompute.
        """
        if self._make is None:
            assert sketch is not None  # `Config` wants one for recompute
            return SketchStore(self.shapes, samples, comm.device(), sketch, weighted_sum)
        device = comm.device()
        return self._make(self.shapes, samples, device, self._dtype, sketch, self._space)


def collect(
    passes: PolicyPasses, per_sample: PerSampleGradients, store: Store, batch: WeightedBatch
) -> Collected:
    """One backward pass a micro-batch, which hands each sample's own gradient to the store."""
    live = torch.zeros(len(batch), dtype=torch.bool, device=batch.weights.device)
    measures: list[Measured] = []
    for rows, part in passes.micro_batches(batch):

        def objectives(rows: range = rows, part: WeightedBatch = part) -> Tensor:
            found = passes.objectives(part)
            measures.append(passes.measures(found))
            live[rows.start : rows.stop] = found.live[: len(rows)]
            return found.values

        if len(rows):
            per_sample.backward(objectives, store, first=rows.start)
        else:
            per_sample.backward(objectives, store=None)
        passes.engine.end_of_pass()
    return Collected(store, live, measures)
