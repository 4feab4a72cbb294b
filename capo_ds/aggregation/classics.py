"""Aggregators from the multi-task literature, on the same Gram matrix.

Their tasks are the samples with an advantage, positive or negative: the ascent direction of each
improves its own objective. Neutral samples enter through g_0 only, where the method has one.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from capo_ds.aggregation import solver
from capo_ds.aggregation.capo import capo
from capo_ds.aggregation.problem import Aggregation, GramProblem
from capo_ds.aggregation.program import ConeProgram


def mean(problem: GramProblem) -> Aggregation:
    """g_0 itself, which is what GRPO applies."""
    return Aggregation(problem.average.copy())


def mgda(problem: GramProblem) -> Aggregation:
    """The point of least norm in the convex hull of the tasks' gradients (Desideri, 2012).

    That is the dual of CAPO's norm ball with every task positive: minimise sqrt(xi' Q xi) over the
    simplex. g~ = dg; where it vanishes the tasks are Pareto-stationary.

    Raises:
        SolverError: as `capo`.
    """
    tasks = np.flatnonzero(_tasks(problem))
    xi = np.zeros(problem.count)
    if len(tasks) == 0:
        return Aggregation(xi, xi, "degenerate")
    still = tasks[problem.norms[tasks] == 0.0]
    if len(still):  # a zero gradient is the point of least norm
        xi[still[0]] = 1.0
        return Aggregation(xi, xi, "degenerate")
    gram = problem.gram[np.ix_(tasks, tasks)]
    solution = solver.solve(ConeProgram(gram, np.zeros(len(tasks)), 1.0, len(tasks), price=1.0))
    xi[tasks] = solution.xi
    report = {"gap": solution.gap, "fallback": float(solution.fallback)}
    return Aggregation(xi.copy(), xi, "optimal" if solution.on_boundary else "degenerate", report)


def cagrad(problem: GramProblem, radius: float = 0.5) -> Aggregation:
    """max_g min_i <g, g_i> over all tasks within ||g - g_0|| <= C ||g_0|| (Liu et al., 2021).

    CAPO with every task positive. (The paper's final division by 1 + C^2 is a learning rate.)

    Raises:
        ValueError, SolverError: as `capo`.
    """
    tasks = _tasks(problem)
    return capo(replace(problem, positive=tasks, negative=np.zeros_like(tasks)), radius=radius)


def pcgrad(problem: GramProblem, seed: int = 0) -> Aggregation:
    """Each task's gradient loses its components against the others (Yu et al., 2020).

    For each task i, over the other tasks j in a random order, where <g_i', g_j> < 0:
    g_i' <- g_i' - <g_i', g_j> / ||g_j||^2 g_j. Then g~ = sum_i w_i g_i' with g_0's weights,
    neutral samples unchanged, so that without conflict g~ = g_0.

    Args:
        problem: N samples.
        seed: of the orders; pass the step to have new ones each step.
    """
    tasks = np.flatnonzero(_tasks(problem) & (problem.norms > 0.0))
    gram = problem.gram[np.ix_(tasks, tasks)]
    count = len(tasks)
    orders = np.random.default_rng(seed).permuted(np.tile(np.arange(count), (count, 1)), axis=1)
    rows = np.arange(count)
    weights, products = np.eye(count), gram.copy()  # of g_i' : (tasks i, gradients j)
    for turn in range(count):
        other = orders[:, turn]
        overlap = np.where(other == rows, 0.0, np.minimum(products[rows, other], 0.0))
        shift = overlap / gram[other, other]
        weights[rows, other] -= shift
        products -= shift[:, None] * gram[other]
    coefficients = problem.average.copy()
    coefficients[tasks] = problem.average[tasks] @ weights
    return Aggregation(coefficients)


def conflict_free(problem: GramProblem) -> Aggregation:
    """ConFIG: the direction u with equal cosines to all tasks, as long as g_0 along u (Liu et al.
    2025).

    With unit gradients h_i and their Gram matrix K, u is parallel to sum_i a_i h_i, a = K^+ 1: the
    cosines are equal where K has full rank, else in the least-squares sense. g~ = <g_0, u> u.
    """
    tasks = np.flatnonzero(_tasks(problem) & (problem.norms > 0.0))
    coefficients = np.zeros(problem.count)
    norms = problem.norms[tasks]
    cosines = problem.gram[np.ix_(tasks, tasks)] / norms[:, None] / norms
    coefficients[tasks] = np.linalg.pinv(cosines, rcond=1e-12, hermitian=True).sum(axis=1) / norms
    squared = coefficients @ problem.gram @ coefficients
    if squared <= 0.0:
        return Aggregation(np.zeros(problem.count), status="degenerate")
    scale = (coefficients @ problem.q0) / squared
    return Aggregation(scale * coefficients)


def _tasks(problem: GramProblem) -> np.ndarray:
    return problem.positive | problem.negative
