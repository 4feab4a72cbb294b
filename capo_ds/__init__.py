"""Conflict-Aware Policy Optimization of language models on DeepSpeed."""
