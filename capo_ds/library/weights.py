"""From a Gram matrix of gradients to the weights of their combination."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from capo_ds import aggregation
from capo_ds.aggregation.diagnostics import Applied, diagnose
from capo_ds.aggregation.given import Choices, given
from capo_ds.aggregation.problem import GramProblem
from capo_ds.aggregation.semidefinite import refuse_what_is_no_gram_matrix

CONFLICT = "conflict/"  # before the names of these measures in the log of a run


@dataclass(frozen=True)
class Combination:
    """The gradient g~ = sum_i weights_i g_i of N samples, and how it came about.

    Attributes:
        weights: (N,) float64; 0 for a sample that was dropped.
        xi: (N,) float64, the samples' weights in the direction dg of CAPO (docs/mathematics.md,
            section 1); None for methods without one.
        status: `optimal`, or one of the others that docs/library.md lists.
        report: the solver's numbers: `gap`, `slack_total`, `hard_feasible`, ...; other methods have
            fewer.
        problem: the samples, as they were understood.
    """

    weights: np.ndarray
    xi: np.ndarray | None
    status: str
    report: dict[str, float]
    problem: GramProblem = field(repr=False)

    @property
    def gap(self) -> float | None:
        """Relative duality gap, which bounds the error; None where no program was solved."""
        return self.report.get("gap")

    @property
    def dropped(self) -> np.ndarray:
        """(N,) bool: samples left out, since their row of the Gram matrix is NaN or infinite."""
        return self.problem.dropped

    @cached_property
    def conflict(self) -> dict[str, float]:
        """Measures of g~ against the plain mean g_0, by the names of docs/metrics.md.

        `negative_before` is the share of negative samples whose gradient has a negative cosine
        with g_0, `negative_after` that with g~; `norm_ratio` is ||g~|| / ||g_0||; and so on.
        """
        applied = Applied.of([self.problem], self.weights[None])
        measures = diagnose(self.problem, applied, self.xi)
        return {name.removeprefix(CONFLICT): value for name, value in measures.items()}


def capo(
    gram: ArrayLike, advantages: ArrayLike | None = None, radius: float = 0.5, **options: Any
) -> Combination:
    """The combination that aligns with every positive sample and opposes no negative one.

    maximise over g: min_i <g, g_i^+>, subject to <g, g_j^-> >= 0 and
    ||g - g_0|| <= radius ||g_0||: CAPO's cone program, in its elastic form unless
    slack_price=math.inf is asked for (docs/mathematics.md, section 1).

    Args:
        gram, advantages: as in `aggregate`.
        radius: C >= 0.
        options: `slack_price`, `region`, `on_infeasible`, `positive_share` of the method, each as
            under `capo` in docs/configuration.md; and those of `aggregate`.

    Raises:
        as `aggregate`.
    """
    return aggregate("capo", gram, advantages, radius=radius, **options)


def aggregate(
    method: str | Callable[..., ArrayLike],
    gram: ArrayLike,
    advantages: ArrayLike | None = None,
    *,
    average: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    program: Mapping[str, Any] | None = None,
    **options: Any,
) -> Combination:
    """The combination of N samples' gradients by a method of the literature, or by one's own.

    Args:
        method: `capo`, `mean` (what GRPO applies), `mgda`, `pcgrad`, `cagrad`, `conflict_free`; a
            Gramian weighting of the torchjd library, such as `torchjd:UPGrad`; or a function of a
            `GramProblem` that gives N coefficients.
        gram: (N, N), the inner products <g_i, g_j>, where g_i is the gradient of sample i's own
            objective (or loss), its advantage included. NumPy, or a tensor of any device.
        advantages: (N,), of which the signs count: positive samples are to be aligned with,
            negative ones not to be opposed, those of 0 are part of g_0 alone. None: all positive.
        average: (N,) weights w of g_0 = sum_i w_i g_i. None: 1/N each.
        groups: (N,) the prompt of each sample, for the choices of `program` that look at prompts.
        program: what of the gradients the method is given, as under `program` in
            docs/configuration.md: {"norms": "unit"}, ... None: the gradients as they are.
        options: the method's own, by keyword.

    Raises:
        ValueError: on arrays that do not fit together, what is plainly no Gram matrix, an unknown
            method, or an option's value.
        TypeError: on an option that the method does not have.
        SolverError: if the program behind it could not be solved.
        RuntimeError: if one's own function fails, or gives no N finite numbers.
    """
    problem = _problem(_array(gram), advantages, average)
    prompts = np.arange(problem.count) if groups is None else _array(groups)
    if prompts.shape != (problem.count,):
        raise ValueError(f"groups must be {problem.count} numbers, got shape {prompts.shape}")
    view = given(problem, prompts, _choices(program, groups))
    if isinstance(method, str):
        solve = method
    else:
        solve = aggregation.own_aggregator(getattr(method, "__name__", repr(method)), method)
    answer = view.answer(aggregation.aggregate(solve, view.problem, **options))
    report = answer.report | {"dropped": float(problem.dropped.sum())}
    return Combination(answer.coefficients, answer.xi, answer.status, report, problem)


def _problem(
    gram: np.ndarray, advantages: ArrayLike | None, average: ArrayLike | None
) -> GramProblem:
    signs = np.ones(len(gram) if gram.ndim else 0)
    if advantages is not None:
        signs = np.sign(_array(advantages).astype(np.float64))
    if np.isnan(signs).any():
        raise ValueError("advantages must be numbers, got NaN")
    if gram.ndim == 2 and signs.shape != gram.shape[:1]:
        raise ValueError(f"advantages must be {len(gram)} numbers, got shape {signs.shape}")
    weights = np.full(signs.shape, 1 / max(len(signs), 1)) if average is None else _array(average)
    problem = GramProblem(gram, signs > 0, signs < 0, weights)
    refuse_what_is_no_gram_matrix(problem)
    return problem


def _choices(program: Mapping[str, Any] | None, groups: ArrayLike | None) -> Choices:
    known = [item.name for item in fields(Choices)]
    if unknown := sorted((program or {}).keys() - set(known)):
        raise ValueError(f"program: {unknown[0]!r} is none of {', '.join(known)}")
    choices = Choices(**(program or {}))
    if groups is None and (choices.tasks == "group" or choices.average != "mean"):
        raise ValueError("program: tasks and average look at prompts; give the groups")
    return choices


def _array(values: Any) -> np.ndarray:
    """NumPy's, also of a tensor with a gradient, on a GPU or in bfloat16."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.double() if values.is_floating_point() else values
    return np.asarray(values)
