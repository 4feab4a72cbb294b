"""CAPO: the aggregate that aligns with every positive sample and opposes no negative one."""

from __future__ import annotations

import time

import numpy as np

from capo_ds.aggregation import solver
from capo_ds.aggregation.problem import Aggregation, GramProblem
from capo_ds.aggregation.program import ConeProgram

# Chosen by experiment, see docs/mathematics.md.
DEFAULT_SLACK_PRICE = 10.0
REGIONS = ("difference", "norm")
INFEASIBLE_ANSWERS = ("elastic", "vanilla")


def capo(
    problem: GramProblem,
    radius: float = 0.5,
    slack_price: float = DEFAULT_SLACK_PRICE,
    region: str = "difference",
    on_infeasible: str = "elastic",
) -> Aggregation:
    """Solve CAPO's cone program and recover g~.

    Args:
        problem: N samples.
        radius: C >= 0 of the trust region, relative to ||g_0||.
        slack_price: rho > 0, price of violating a negative's constraint; inf is the hard program.
        region: "difference" is ||g - g_0|| <= C ||g_0||, "norm" is ||g|| <= C ||g_0||.
        on_infeasible: answer of a hard program without a feasible point: the elastic one at price
            10, or g_0 itself.

    Raises:
        ValueError: on an option out of range.
        SolverError: if no solver found an optimal pair.
    """
    _validate(radius, slack_price, region, on_infeasible)
    started = time.perf_counter()
    samples = np.concatenate([np.flatnonzero(problem.positive), np.flatnonzero(problem.negative)])
    base = problem.vanilla if region == "difference" else np.zeros(problem.count)
    program = ConeProgram(
        gram=problem.gram[np.ix_(samples, samples)],
        linear=(problem.gram @ base)[samples],
        radius=radius * problem.vanilla_norm,
        positives=int(problem.positive.sum()),
        price=slack_price,
    )
    if len(samples) == 0 or program.radius == 0:
        return Aggregation(base.copy(), np.zeros(problem.count), "degenerate", {}, base, radius)
    solution = solver.solve(program)
    xi, step = np.zeros(problem.count), np.zeros(problem.count)
    xi[samples] = solution.xi
    step[samples] = solution.step
    return Aggregation(
        base + step,
        xi,
        "fallback" if solution.fallback else "optimal",
        {"gap": solution.gap, "seconds": time.perf_counter() - started},
        base,
        radius,
        solution.on_boundary,
    )


def _validate(radius: float, slack_price: float, region: str, on_infeasible: str) -> None:
    if not (np.isfinite(radius) and radius >= 0):
        raise ValueError(f"radius must be finite and >= 0, got {radius}")
    if not slack_price > 0:
        raise ValueError(f"slack_price must be > 0 (inf allowed), got {slack_price}")
    if region not in REGIONS:
        raise ValueError(f"region must be one of {', '.join(REGIONS)}, got {region!r}")
    if on_infeasible not in INFEASIBLE_ANSWERS:
        choices = ", ".join(INFEASIBLE_ANSWERS)
        raise ValueError(f"on_infeasible must be one of {choices}, got {on_infeasible!r}")
