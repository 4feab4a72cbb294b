"""What is relied on in other libraries beyond their documented interfaces: how a loss is told.

Each library has one module that looks inside it: `distributed/zero.py` (DeepSpeed),
`rollout/vllm_internals.py`, `peft_internals.py`, `aggregation/torchjd_weightings.py`. Each names
the attributes it needs; tests/unit/test_contracts.py looks for all of them in what is installed.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module

from capo_ds.config import ConfigError


def check(library: str, owner: object, names: Iterable[str]) -> None:
    """Raises `ConfigError` naming what an object of this version of the library lacks."""
    missing = [name for name in names if not hasattr(owner, name)]
    if missing:
        kind = owner if isinstance(owner, type) else type(owner)
        version = import_module(library).__version__
        raise ConfigError(
            f"{library} {version}: its {kind.__name__} has no {', '.join(missing)}, which "
            f"capo_ds relies on; install the version of {library} that "
            "launchers/constraints.txt names"
        )
