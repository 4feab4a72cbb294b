"""Vectors of the second-order cone whose tails live in the span of the gradients.

A tail v = sum_i a_i g_i is held as its coefficients a and its products Q a, so inner products are
<v, v'> = a' (Q a') and no factor of the Gram matrix is ever formed. The formulas are those of the
cone's Jordan algebra and of the Nesterov-Todd scaling (Vandenberghe, "The CVXOPT linear and
quadratic cone program solvers", 2010).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Lorentz:
    """(head, v): inside the cone where head > ||v||.

    Attributes:
        head: scalar.
        tail: (2, K), coefficients a and products Q a of v.
    """

    head: float
    tail: np.ndarray

    def __add__(self, other: Lorentz) -> Lorentz:
        return Lorentz(self.head + other.head, self.tail + other.tail)

    def __sub__(self, other: Lorentz) -> Lorentz:
        return Lorentz(self.head - other.head, self.tail - other.tail)

    def __mul__(self, factor: float) -> Lorentz:
        return Lorentz(self.head * factor, self.tail * factor)

    def tail_dot(self, other: Lorentz) -> float:
        return float(self.tail[0] @ other.tail[1])

    def dot(self, other: Lorentz) -> float:
        return self.head * other.head + self.tail_dot(other)

    def reflected(self) -> Lorentz:
        """J x = (head, -v)."""
        return Lorentz(self.head, -self.tail)

    def determinant(self) -> float:
        """head^2 - ||v||^2, the square of the hyperbolic norm; positive inside the cone."""
        tail_norm = np.sqrt(max(self.tail_dot(self), 0.0))
        return (self.head - tail_norm) * (self.head + tail_norm)

    def product(self, other: Lorentz) -> Lorentz:
        """Jordan product (x' y, x_0 y_1 + y_0 x_1)."""
        return Lorentz(self.dot(other), self.head * other.tail + other.head * self.tail)

    def divide_into(self, other: Lorentz) -> Lorentz:
        """The y with x o y = other."""
        head = (self.head * other.head - self.tail_dot(other)) / self.determinant()
        return Lorentz(head, (other.tail - head * self.tail) / self.head)

    def steps_inside(self, direction: Lorentz) -> float:
        """Largest alpha for which x + alpha direction stays in the cone, from an interior x."""
        quadratic = direction.head**2 - direction.tail_dot(direction)
        linear = self.head * direction.head - self.tail_dot(direction)
        root = np.sqrt(max(linear**2 - quadratic * self.determinant(), 0.0))
        if quadratic < 0:
            return (-linear - root) / quadratic
        if linear >= 0 or root == 0:
            return np.inf
        return self.determinant() / (root - linear)


@dataclass(frozen=True)
class Scaling:
    """Nesterov-Todd scaling W of a primal s and a dual z in the interior: W z = W^-1 s.

    W^-2 = weight (2 (J w)(J w)' - J) with the hyperbolic unit vector w.
    """

    w: Lorentz
    weight: float

    @classmethod
    def between(cls, s: Lorentz, z: Lorentz) -> Scaling:
        s_size, z_size = np.sqrt(s.determinant()), np.sqrt(z.determinant())
        s_unit, z_unit = s * (1 / s_size), z * (1 / z_size)
        gamma = np.sqrt((1 + max(1.0, s_unit.dot(z_unit))) / 2)  # >= 1 but for rounding
        return cls((s_unit + z_unit.reflected()) * (0.5 / gamma), z_size / s_size)

    def apply(self, x: Lorentz) -> Lorentz:
        """W x."""
        return _boost(self.w, x) * self.weight**-0.5

    def invert(self, x: Lorentz) -> Lorentz:
        """W^-1 x."""
        return _boost(self.w.reflected(), x) * self.weight**0.5


def _boost(w: Lorentz, x: Lorentz) -> Lorentz:
    """Hyperbolic rotation [[w_0, w_1'], [w_1, I + w_1 w_1' / (1 + w_0)]] x."""
    overlap = w.tail_dot(x)
    return Lorentz(w.head * x.head + overlap, x.tail + (x.head + overlap / (1 + w.head)) * w.tail)
