"""Conflict-Aware Policy Optimization of language models on DeepSpeed.

What is named here is the public interface (docs/library.md). Importing it costs nothing: a name
brings in what it needs when it is first used, and the weights need NumPy and SciPy only.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import capo_ds.parent  # noqa: F401 # which must be the first

if TYPE_CHECKING:
    from capo_ds.aggregation.problem import GramProblem
    from capo_ds.aggregation.solver import SolverError
    from capo_ds.callbacks import Callback, Event
    from capo_ds.config import Config, ConfigError, load_config
    from capo_ds.library.gradients import Gradients, per_sample_gradients
    from capo_ds.library.training import RunResult, Trainer
    from capo_ds.library.weights import Combination, aggregate, capo

__version__ = "0.2.0"

_PLACES = {
    "Callback": "capo_ds.callbacks",
    "Combination": "capo_ds.library.weights",
    "Config": "capo_ds.config",
    "ConfigError": "capo_ds.config",
    "Event": "capo_ds.callbacks",
    "Gradients": "capo_ds.library.gradients",
    "GramProblem": "capo_ds.aggregation.problem",
    "RunResult": "capo_ds.library.training",
    "SolverError": "capo_ds.aggregation.solver",
    "Trainer": "capo_ds.library.training",
    "aggregate": "capo_ds.library.weights",
    "capo": "capo_ds.library.weights",
    "load_config": "capo_ds.config",
    "per_sample_gradients": "capo_ds.library.gradients",
}

__all__ = [
    "Callback",
    "Combination",
    "Config",
    "ConfigError",
    "Event",
    "Gradients",
    "GramProblem",
    "RunResult",
    "SolverError",
    "Trainer",
    "__version__",
    "aggregate",
    "capo",
    "load_config",
    "per_sample_gradients",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_PLACES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
