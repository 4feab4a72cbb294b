"""Surrogates of the policy objective, one a file; `capo_ds.objective` puts the rest around them."""

from capo_ds.objectives.base import MAX_LOG_RATIO, Surrogate, Tokens

__all__ = ["MAX_LOG_RATIO", "Surrogate", "Tokens"]
