"""From the Gram matrix of an update's samples to their coefficients in g~, with all measures.

Pure NumPy, the same on every rank that calls it with the same matrices.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from capo_ds.aggregation import Aggregator
from capo_ds.aggregation.diagnostics import Applied, between, diagnose, ratio
from capo_ds.aggregation.given import Choices, given
from capo_ds.aggregation.heldout import halves, heldout, total
from capo_ds.aggregation.problem import Aggregation, GramProblem
from capo_ds.aggregation.radius import RadiusChooser
from capo_ds.parts import built_in

AUTO = "auto"  # capo.radius


@dataclass(frozen=True)
class Samples:
    """The samples of one update, in rank order.

    Attributes:
        grams: (blocks, N, N) inner products, one matrix a block of LoRA factors (or one for all).
        signs: (N,) sign of the advantage; 0 also where the clip leaves no policy gradient.
        groups: (N,) the prompt's number.
        total: how many samples g_0 is the mean of; those without a gradient are not among the N.
        sources: (N,) the name of each sample's data set, where there are several.
    """

    grams: np.ndarray
    signs: np.ndarray
    groups: np.ndarray
    total: int
    sources: np.ndarray | None = None

    def problems(self) -> list[GramProblem]:
        """One a block; a sample that is dropped from one is dropped from all."""
        weights = np.full(len(self.signs), 1 / self.total)
        positive, negative = self.signs > 0, self.signs < 0
        grams = self.grams
        if len(grams) > 1:
            dropped = GramProblem(grams.sum(0), positive, negative, weights).dropped
            grams = np.where(dropped[:, None] | dropped, np.nan, grams)
        return [GramProblem(gram, positive, negative, weights) for gram in grams]


@dataclass(frozen=True)
class Solved:
    """The answer of an update, and what is told of it.

    Attributes:
        results: one aggregation a block, in coefficients of the samples.
        mean_weights: (N,) of the plain g_0; 0 for dropped samples.
        norms: (N,) of the samples' gradients.
        cosines_before, cosines_after: (N,) with the plain g_0 and with g~.
        sketched_norms: ||g_0|| and ||dg|| by the Gram matrix, where g~ is on the boundary.
        dropped: (N,) of bool, samples whose gradient holds NaN or Inf.
        metrics: for the log.
    """

    results: list[Aggregation]
    mean_weights: np.ndarray
    norms: np.ndarray
    cosines_before: np.ndarray
    cosines_after: np.ndarray
    sketched_norms: tuple[float, float] | None
    dropped: np.ndarray
    metrics: dict[str, float]

    @property
    def coefficients(self) -> np.ndarray:
        """(blocks, N) c of g~."""
        return np.stack([result.coefficients for result in self.results])

    @property
    def xi(self) -> np.ndarray | None:
        """(N,) weights of the direction: their mean over blocks, if the aggregator has any."""
        given = [result.xi for result in self.results if result.xi is not None]
        return np.mean(given, axis=0) if len(given) == len(self.results) else None

    def heard(self, numbers: np.ndarray, total: int) -> dict[int, dict[str, float | None]]:
        """What became of each sample, by its number: the `norm` of its gradient (None where that
        holds NaN or Inf), its cosines with the plain g_0 and with g~ (None where it is zero), its
        weight `xi` in the direction (None where there is none), and its coefficient in g~ in units
        of the plain mean's."""
        xi = self.xi
        weights = self.coefficients.mean(0) * total
        return {
            int(number): {
                "norm": None if self.dropped[row] else float(self.norms[row]),
                "cosine_before": float(self.cosines_before[row]) if self.norms[row] else None,
                "cosine_after": float(self.cosines_after[row]) if self.norms[row] else None,
                "xi": None if xi is None else float(xi[row]),
                "weight": float(weights[row]),
            }
            for row, number in enumerate(numbers)
        }


@dataclass
class Solver:
    """An aggregator with its settings, and what it remembers from step to step.

    Attributes:
        name: of the aggregator, as `aggregate` takes it.
        options: its own; `radius: auto` is settled here.
        choices: what it is given.
        measure_heldout: whether to report held-out conflict.
        own: the function, where it is not the plain one of that name.
    """

    name: str
    options: Mapping[str, object] = field(default_factory=dict)
    choices: Choices = field(default_factory=Choices)
    measure_heldout: bool = True
    radius: RadiusChooser = field(default_factory=RadiusChooser)
    own: Aggregator | None = None

    def solve(self, samples: Samples, random: np.random.Generator, seed: int = 0) -> Solved:
        """Aggregate, and measure.

        random: draws the halves of held-out measures.
        seed: for an aggregator with an argument of that name, which draws something itself.
        """
        blocks = samples.problems()
        groups, whole = samples.groups, total(blocks)
        options: dict[str, object] = {**self.options, **({"seed": seed} if self._draws else {})}
        first = halves(groups, random)

        @cache
        def unseen(radius: float | None = None) -> dict[str, float]:
            """Held-out measures with the options as they are, or with this radius."""
            chosen = options if radius is None else options | {"radius": radius}
            return heldout(blocks, groups, first, self._coefficients(chosen)) if first.any() else {}

        radius, metrics = None, {}
        if options.get("radius") == AUTO:
            radius, metrics = self.radius.choose(
                lambda candidate: unseen(candidate).get("conflict/heldout_alignment")
            )
            options["radius"] = radius
        results = self._fit(blocks, groups, options)
        coefficients = np.stack([result.coefficients for result in results])
        applied = Applied.of(blocks, coefficients)
        metrics |= self._report(results, blocks[0].dropped)
        if self.measure_heldout:
            metrics |= unseen(radius)
        solved = Solved(
            results,
            whole.average,
            whole.norms,
            ratio(whole.q0, whole.norms * whole.vanilla_norm),
            ratio(applied.products, whole.norms * applied.norm),
            _sketched_norms(blocks, results),
            blocks[0].dropped,  # the sum over blocks no longer knows
            metrics,
        )
        metrics |= diagnose(whole, applied, solved.xi)
        if samples.sources is not None:
            metrics |= between(whole, samples.sources)
        return solved

    @cached_property
    def _aggregator(self) -> Aggregator:
        return self.own or built_in("aggregator", self.name)

    @property
    def _draws(self) -> bool:
        return "seed" in inspect.signature(self._aggregator).parameters

    def _fit(
        self, blocks: Sequence[GramProblem], groups: np.ndarray, options: dict[str, object]
    ) -> list[Aggregation]:
        answers = []
        for block in blocks:
            program = given(block, groups, self.choices)
            answer = self._aggregator(program.problem, **options)
            answers.append(program.answer(answer))
        return answers

    def _coefficients(self, options: dict[str, object]):
        return lambda blocks, groups: np.stack(
            [result.coefficients for result in self._fit(blocks, groups, options)]
        )

    def _report(self, results: list[Aggregation], dropped: np.ndarray) -> dict[str, float]:
        """The aggregator's own, as means over blocks, and how many samples were dropped."""
        group = Path(self.name).name.replace(":", "_")
        means = {
            key: float(np.mean([result.report[key] for result in results]))
            for key in results[0].report
        }
        means["dropped"] = float(dropped.sum())
        return {f"{group}/{key}": value for key, value in means.items()}


def _sketched_norms(
    blocks: list[GramProblem], results: list[Aggregation]
) -> tuple[float, float] | None:
    """||g_0|| of the trust region and ||dg|| as the Gram matrix has them; None off the boundary."""
    if len(blocks) > 1 or not results[0].on_boundary:
        return None
    gram, result = blocks[0].gram, results[0]
    first, second = (
        float(np.sqrt(max(weights @ gram @ weights, 0.0)))
        for weights in (result.average, result.xi)
    )
    return first, second
