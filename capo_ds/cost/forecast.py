"""Seconds and bytes of a step on a cluster, phase by phase."""

from __future__ import annotations

from typing import NamedTuple

from capo_ds.cost.cluster import Cluster, Rates
from capo_ds.cost.collectives import Collectives
from capo_ds.cost.step import Phase, Step
from capo_ds.terminal import aligned


class Forecast(NamedTuple):
    """Of a phase: seconds that a rank works and that it exchanges, bytes that it sends."""

    work: float
    exchange: float
    sent: float

    @property
    def seconds(self) -> float:
        return self.work + self.exchange


def forecast(step: Step, cluster: Cluster) -> dict[str, Forecast]:
    """Of every phase.

    step: on a whole number of the cluster's machines. cluster: which `check` has found whole.
    """
    collectives = Collectives(cluster, step.ranks // cluster.ranks)
    return {name: _of(phase, step, collectives) for name, phase in step.phases().items()}


def _of(phase: Phase, step: Step, collectives: Collectives) -> Forecast:
    rates = collectives.cluster.rates
    spent = sum(_work(name, amount, step, rates) for name, amount in phase.work.items())
    exchanged = sum(one.times * collectives.seconds(one.kind, one.count) for one in phase.exchanges)
    return Forecast(spent, exchanged, phase.sent(collectives.ranks))


def _work(name: str, amount: float, step: Step, rates: Rates) -> float:
    """Seconds; of `solve` and `optimizer` the amount is how often."""
    if name == "solve":
        return amount * rates.solve_seconds(step.samples)
    if name == "optimizer":
        return amount * rates.optimizer
    if name == "per_sample":
        return amount * rates.per_sample / rates.passes
    if name in ("applied", "drawn"):
        rate = getattr(rates.sketch[step.config.gradients.sketch], name)
        return amount / rate if rate else 0.0
    return amount / getattr(rates, name)


def table(found: dict[str, Forecast]) -> str:
    """For people."""
    rows = [["phase", "seconds", "work", "exchange", "sent by a rank"]]
    whole = Forecast(*map(sum, zip(*found.values(), strict=True)))
    for name, one in [*found.items(), ("step", whole)]:
        seconds = [f"{value:.3f}" for value in (one.seconds, one.work, one.exchange)]
        rows.append([name, *seconds, f"{one.sent / 2**20:.1f} MiB"])
    return aligned(rows, None)
