"""Conflict-Aware Policy Optimization of language models on DeepSpeed."""

__version__ = "0.2.0"
