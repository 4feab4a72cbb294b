"""How far numbers of unknown history may be off by rounding."""

from __future__ import annotations

import numpy as np

SINGLE = 2.0**-23  # relative distance of float32 numbers
DOUBLE = 2.0**-52
SHORT = 2.0**16  # a float32 number with more significant bits than this was computed


def roundings(values: np.ndarray) -> np.ndarray:
    """|v| times the relative distance of the numbers that v seems to be one of.

    A value of more than 16 significant bits that float32 holds exactly was computed in float32, as
    scores of a model are; all others are taken as float64 numbers.

    Args:
        values: any shape, finite.
    """
    values = np.asarray(values, dtype=np.float64)
    mantissa = np.frexp(values)[0] * SHORT
    with np.errstate(over="ignore"):
        single = values.astype(np.float32) == values
    computed = single & (mantissa != np.trunc(mantissa))
    return np.abs(values) * np.where(computed, SINGLE, DOUBLE)


def common_steps(values: np.ndarray) -> np.ndarray:
    """(rows,) the largest power of two of which all values (rows, n) of a row are multiples.

    Infinite where all are zero.
    """
    mantissas, exponents = np.frexp(np.asarray(values, dtype=np.float64))
    digits = np.abs(mantissas * 2.0**53).astype(np.int64)
    lowest = (digits & -digits).astype(np.float64)  # the last bit that is set
    steps = np.ldexp(lowest, exponents - 53)
    return np.where(digits == 0, np.inf, steps).min(axis=1, initial=np.inf)
