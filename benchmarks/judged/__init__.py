"""Pairs of answers whose truth is known by construction, to measure graders on (`judge.py`)."""
