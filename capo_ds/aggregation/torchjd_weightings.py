"""The Gramian weightings of the torchjd library, as aggregators."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import numpy as np

from capo_ds.aggregation.problem import Aggregation, GramProblem

PREFIX = "torchjd:"


def torchjd_aggregator(name: str) -> Callable[..., Aggregation]:
    """The aggregator behind e.g. `torchjd:UPGrad`; its options are the weighting's own.

    Raises:
        ValueError: if torchjd has no such weighting of a Gram matrix.
        ImportError: if torchjd is not installed.
    """
    try:
        from torchjd import aggregation
    except ImportError as error:
        raise ImportError(f"{name} needs torchjd: pip install 'capo_ds[torchjd]'") from error
    known = {
        key.removesuffix("Weighting"): value
        for key, value in vars(aggregation).items()
        if key.endswith("Weighting") and _weighs_a_gramian(value)
    }
    short = name.removeprefix(PREFIX).removesuffix("Weighting")
    if short not in known:
        choices = ", ".join(PREFIX + key for key in sorted(known))
        raise ValueError(f"unknown aggregator {name!r}; choose from {choices}")
    return _aggregator(known[short])


def _aggregator(weighting: type) -> Callable[..., Aggregation]:
    """The weighting as an aggregator, with the signature of its options."""

    def aggregator(problem: GramProblem, **options: object) -> Aggregation:
        return _weigh(weighting, problem, **options)

    own = inspect.signature(weighting).parameters.values()
    options = [p.replace(kind=p.KEYWORD_ONLY) for p in own]
    problem = inspect.Parameter("problem", inspect.Parameter.POSITIONAL_ONLY)
    aggregator.__signature__ = inspect.Signature([problem, *options])
    return aggregator


def _weigh(weighting: type, problem: GramProblem, **options: object) -> Aggregation:
    """g~ = sum_i c_i g_i over the samples with an advantage, c as the library scales it.

    Some weightings scale like the sum of the gradients, others like their mean. Options that the
    weighting does not take raise TypeError.
    """
    import torch

    tasks = np.flatnonzero(problem.positive | problem.negative)
    coefficients = np.zeros(problem.count)
    if len(tasks):
        gram = torch.from_numpy(problem.gram[np.ix_(tasks, tasks)].copy())
        coefficients[tasks] = weighting(**options)(gram).numpy()
    return Aggregation(coefficients)


def _weighs_a_gramian(weighting: type) -> bool:
    """Not those of the Jacobian itself, and not those with a memory of earlier steps."""
    bases = {base.__name__ for base in weighting.__mro__}
    return "_GramianWeighting" in bases - {weighting.__name__} and "Stateful" not in bases
