"""Families of problems for CAPO's solver: random gradients, and their Gram matrices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from capo_ds.aggregation import GramProblem


@dataclass(frozen=True)
class Family:
    """Random gradients, noise plus a shared mode; the first `share` of them are positive."""

    share: float = 0.5
    radius: float = 0.5
    mode: float = 0.0
    mode_spread: float = 0.0
    heavy: float = 0.0
    rank: float = 2.0  # dimension over N; above 4 the dimension itself
    scale: float = 1.0
    copies: int = 1  # of each gradient, but for noise
    noise: float = 1e-4

    def problem(self, count: int, seed: int) -> GramProblem:
        rng = np.random.default_rng(seed)
        d = int(self.rank) if self.rank > 4 else max(2, int(self.rank * count))
        rows = rng.normal(size=(count, d)) / np.sqrt(d)
        if self.copies > 1:
            noise = self.noise * rows
            rows = rows[rng.integers(0, count // self.copies, size=count)] + noise
        loads = self.mode + self.mode_spread * rng.normal(size=(count, 1))
        rows += loads * rng.normal(size=d) / np.sqrt(d)
        rows *= self.scale * np.exp(self.heavy * rng.normal(size=(count, 1)))
        positive = np.arange(count) < round(self.share * count)
        return GramProblem(rows @ rows.T, positive, ~positive)


FAMILIES = {
    "near-orthogonal": Family(),
    "shared mode": Family(mode=1.0, mode_spread=1.0),
    "heavy-tailed": Family(heavy=1.5),
    "rank-deficient": Family(rank=0.4),
    "infeasible": Family(mode_spread=1.0, radius=0.1),
    "m << n": Family(mode_spread=0.5, share=0.05),
    "m >> n": Family(mode_spread=0.5, share=0.95),
    "scaled 1e-12": Family(mode_spread=0.5, scale=1e-12),
    "scaled 1e+12": Family(mode_spread=0.5, scale=1e12),
}
# Harder ones, for `--large`.
MORE = {
    "heavier tail": Family(heavy=3.0),
    "unlike loads": Family(mode_spread=3.0),
    "rank 64": Family(rank=64.0),
    "rank N/4": Family(rank=0.25),
    "rank N/2": Family(rank=0.5),
    "rank N/2, heavy": Family(rank=0.5, heavy=1.5),
    "rank 3N/4": Family(rank=0.75),
    "near duplicates": Family(copies=4),
    "within 1e-6": Family(copies=4, noise=1e-6),
    "exact duplicates": Family(copies=2, noise=0.0),
    "positives only": Family(share=1.0),
    "negatives only": Family(share=0.0),
}
