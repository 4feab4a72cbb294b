"""Streams of random numbers that a run can take up again at any step, without kept state."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What the numbers are for; streams of one seed are independent of each other."""

    PROMPT_ORDER = 1
    MINIBATCH_ORDER = 2
    SAMPLING = 3
    HELDOUT_HALVES = 4
    MIXTURE = 5
    REPLACEMENT = 6


SEED_STRIDE = 1_000_003  # so that the updates of runs with neighbouring seeds do not meet


def update_seed(seed: int, number: int) -> int:
    """Of what is random within an update, other than by a stream. number: of the optimizer step."""
    return seed + SEED_STRIDE * number


def generator(seed: int, stream: Stream, first: int, second: int = 0) -> np.random.Generator:
    """The generator of one place in a stream, e.g. of a step and a prompt.

    Always four words: `default_rng` takes [a, b] and [a, b, 0] for the same seed.
    """
    return np.random.default_rng([seed, stream, first, second])
