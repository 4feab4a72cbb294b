"""Seconds of one collective, by alpha, beta and the algorithm that the backend takes.

W ranks, g on each of K machines. A ring has W - 1 stages; a message goes through it in the time of
its slow hops and its fast ones, and the slowest link sets the rate. gloo: rings, but a binomial
tree to broadcast, and for a reduction a ring's scatter with a gathering of the parts at rank 0
(gloo/reduce.cc, broadcast.cc, allgather.cc, alltoallv.cc). It asks whether a rank is ready before
it sends, which costs half of alpha; in all but gathers and all-to-all, hops after the first go to
ranks that have said so by then (as measured: benchmarks/foretold.py). NCCL: rings for what is large
and trees for what is small, reductions and broadcasts down a pipelined chain (Sylvain Jeaugey,
"Massively scale your deep learning training with NCCL 2.4", 2019).
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

from capo_ds.cost.cluster import Cluster, Link

# Of a machine with one rank, or of one machine: nothing goes over it (`Cluster.check`).
UNUSED = Link(seconds=0.0, bytes_per_second=sys.float_info.max)


@dataclass(frozen=True)
class Collectives:
    """Of a cluster with so many machines."""

    cluster: Cluster
    machines: int

    @property
    def ranks(self) -> int:
        return self.machines * self.cluster.ranks

    def seconds(self, kind: str, count: float) -> float:
        """Of one collective.

        kind: all_gather and reduce_scatter (`count` bytes of all ranks together), all_reduce,
        reduce and broadcast (of the tensor), all_to_all (of one rank's, to itself included).
        """
        if self.ranks == 1:
            return 0.0
        return getattr(self, f"_{kind}")(count)

    def _all_gather(self, count: float) -> float:
        return self._ring_latency + self._share * count / self._rate

    _reduce_scatter = _all_gather

    def _all_reduce(self, count: float) -> float:
        latency = self._told_ahead(2 * self._ring_latency)
        if self._is_nccl:
            latency = 2 * min(self._ring_latency, self._tree_latency)
        return latency + 2 * self._share * count / self._rate

    def _reduce(self, count: float) -> float:
        if self._is_nccl:
            return self._tree_latency + count / self._rate
        return self._told_ahead(self._ring_latency) + 2 * self._share * count / self._rate

    def _broadcast(self, count: float) -> float:
        if self._is_nccl:
            return self._tree_latency + count / self._rate
        stages = math.ceil(math.log2(self.ranks))
        return self._told_ahead(self._tree_latency) + stages * count / self._rate

    def _all_to_all(self, count: float) -> float:
        """All at once; a machine's adapters carry what all its ranks send to other machines."""
        here, ranks = self.cluster.ranks, self.ranks
        inside = count * (here - 1) / ranks / self._within.bytes_per_second
        outside = here * count * (ranks - here) / ranks / self._between.bytes_per_second
        return self._slowest.seconds + max(inside, outside) / self.cluster.all_to_all

    def _told_ahead(self, latency: float) -> float:
        """gloo: of hops whose receivers, but for the first, are known to be ready."""
        return (latency + self._slowest.seconds) / 2

    @property
    def _within(self) -> Link:
        return self.cluster.within if self.cluster.within and self.cluster.ranks > 1 else UNUSED

    @property
    def _between(self) -> Link:
        return self.cluster.between if self.cluster.between and self.machines > 1 else UNUSED

    @property
    def _is_nccl(self) -> bool:
        return self.cluster.backend == "nccl"

    @property
    def _share(self) -> float:
        return (self.ranks - 1) / self.ranks

    @property
    def _slowest(self) -> Link:
        return self._between if self.machines > 1 else self._within

    @property
    def _rate(self) -> float:
        """Of a ring: its slowest link's."""
        return min(self._within.bytes_per_second, self._between.bytes_per_second)

    @property
    def _ring_latency(self) -> float:
        """Of W - 1 hops, of which K go between machines (K - 1 where each has one rank)."""
        hops = self.ranks - 1
        slow = min(hops, self.machines) if self.machines > 1 else 0
        return slow * self._between.seconds + (hops - slow) * self._within.seconds

    @property
    def _tree_latency(self) -> float:
        """Down a tree over the machines, then within each."""
        between = math.ceil(math.log2(self.machines)) * self._between.seconds
        return between + math.ceil(math.log2(self.cluster.ranks)) * self._within.seconds
