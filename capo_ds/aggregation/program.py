"""The elastic second-order cone program of CAPO in its Gram form, and its certificate.

Primal, over g in R^d and slacks s >= 0, with centre c (g_0, or 0 for the norm ball):

    maximise   min_i <g, g_i^+>  -  rho sum_j s_j
    subject to <g, g_j^-> >= -s_j,   ||g - c|| <= R.

Its Lagrangian, with weights alpha in the simplex on the m positives, 0 <= beta_j <= rho on the n
negatives, and xi = (alpha, beta), is largest over the ball at g = c + R dg / ||dg||, where
dg = sum_i xi_i g_i. That gives the dual

    minimise   R sqrt(xi' Q xi) + xi' q,        Q_ij = <g_i, g_j>,  q_i = <c, g_i>.

rho = inf is the hard program. Without positives (m = 0) the minimum over them is absent: the
program minimises the total slack.

Where dg = 0 at the optimum, the optimal value is <c, dg> = 0 and the ball is inactive.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

# dg counts as zero where it is this small against the sum of |xi_i| ||g_i||. Rounding of the Gram
# matrix alone leaves 1e-8 in sqrt(xi' Q xi), and the solver's gap of 1e-9 about as much more.
ZERO_DIRECTION = 1e-6
# Gradients smaller than the largest by more than this are not told from zero ones.
NORM_RANGE = 1e-6


@dataclass(frozen=True)
class ConeProgram:
    """One elastic program over K = m + n samples, positives first.

    Attributes:
        gram: (K, K) Q.
        linear: (K,) q, inner products with the centre of the trust region.
        radius: R >= 0, absolute, in the unit of the gradients.
        positives: m.
        price: rho > 0, may be inf.
    """

    gram: np.ndarray
    linear: np.ndarray
    radius: float
    positives: int
    price: float

    @property
    def negatives(self) -> int:
        return len(self.linear) - self.positives

    def direction_norm(self, xi: np.ndarray, products: np.ndarray | None = None) -> float:
        """||dg|| = sqrt(xi' Q xi). products: (K,) Q xi, where the caller has it."""
        products = self.gram @ xi if products is None else products
        return float(np.sqrt(max(xi @ products, 0.0)))

    def dual_value(self, xi: np.ndarray, products: np.ndarray | None = None) -> float:
        """R sqrt(xi' Q xi) + xi' q. products: (K,) Q xi, where the caller has it."""
        return self.radius * self.direction_norm(xi, products) + float(self.linear @ xi)

    def products(self, step: np.ndarray) -> np.ndarray:
        """(K,) <g, g_i> of the point g = c + sum_i step_i g_i."""
        return self.linear + self.gram @ step

    def alignment(self, products: np.ndarray) -> float:
        """min_i <g, g_i^+>, or 0 without positives."""
        return float(products[: self.positives].min()) if self.positives else 0.0

    def slacks(self, products: np.ndarray) -> np.ndarray:
        """(n,) s_j = max(0, -<g, g_j^->)."""
        return np.maximum(0.0, -products[self.positives :])

    def primal_value(self, products: np.ndarray) -> float:
        """min_i <g, g_i^+> - rho sum_j s_j at a point of the ball, given its products."""
        total = float(self.slacks(products).sum())
        return self.alignment(products) - (self.price * total if total else 0.0)

    def boundary_step(self, xi: np.ndarray) -> np.ndarray:
        """(K,) the recovery R xi / ||dg||, for dg != 0."""
        return (self.radius / self.direction_norm(xi)) * xi

    @cached_property
    def norms(self) -> np.ndarray:
        """(K,) ||g_i||."""
        return np.sqrt(np.maximum(np.diag(self.gram), 0.0))

    def magnitude(self, xi: np.ndarray) -> float:
        """Sum of the magnitudes of the terms that `dual_value` adds up."""
        return float(xi @ (self.radius * self.norms + np.abs(self.linear)))

    def cancellation_scale(self, xi: np.ndarray) -> float:
        """The unit in which the dual value at xi is accurate: `magnitude`, with a floor.

        The floor is for xi that go to zero (no positives) or to samples with zero gradient.
        """
        terms = self.radius * self.norms + np.abs(self.linear)
        return max(self.magnitude(xi), self._floor * float(terms.max()))

    def direction_vanishes(self, xi: np.ndarray, products: np.ndarray | None = None) -> bool:
        """Whether dg is zero to working precision; `products` (K,) is Q xi, if at hand."""
        squared = float(xi @ (self.gram @ xi if products is None else products))
        unit = max(float(xi @ self.norms), self._floor * float(self.norms.max()))
        return squared <= (ZERO_DIRECTION * unit) ** 2

    @property
    def _floor(self) -> float:
        return NORM_RANGE if self.positives else self.price

    def gap(self, xi: np.ndarray, step: np.ndarray) -> float:
        """Dual minus primal value, relative to `cancellation_scale`; zero only if both are optimal.

        Args:
            xi: (K,) dual feasible.
            step: (K,) of the point c + sum_i step_i g_i of the ball.
        """
        difference = self.dual_value(xi) - self.primal_value(self.products(step))
        return difference / (self.cancellation_scale(xi) or 1.0)

    def boundary_gap(self, xi: np.ndarray, products: np.ndarray) -> tuple[float, np.ndarray]:
        """`gap` of xi with its recovery g = c + R dg / ||dg||, and (K,) the <g, g_i>.

        Args:
            xi: (K,) with dg != 0.
            products: (K,) Q xi.
        """
        length = float(np.sqrt(xi @ products))
        aligned = self.linear + (self.radius / length) * products
        difference = self.dual_value(xi, products) - self.primal_value(aligned)
        return difference / self.cancellation_scale(xi), aligned

    def normalised(self) -> tuple[ConeProgram, float]:
        """The same program in the unit S of the gradients and R of their steps, and R / S.

        S is the root mean square norm; q / (R S) and R = 1 make the answer the same under any
        scaling of the gradients. A step there is R / S of a step here, xi is the same.
        """
        size = float(np.sqrt(np.mean(self.norms**2)))
        gram = self.gram / size
        gram /= size
        scaled = replace(
            self,
            gram=gram,
            linear=self.linear / size / self.radius,
            radius=1.0,
        )
        return scaled, self.radius / size

    def restricted(self, kept: np.ndarray) -> ConeProgram:
        """The program of the samples `kept`, sorted indices: fewer constraints in the primal."""
        return replace(
            self,
            gram=self.gram[np.ix_(kept, kept)],
            linear=self.linear[kept],
            positives=int(np.count_nonzero(kept < self.positives)),
        )

    def feasibility_program(self) -> ConeProgram:
        """min total slack over the ball: the same program without positives, at price 1.

        The hard program is infeasible exactly if the optimum is below zero, that is, if some
        beta >= 0 has R ||sum_j beta_j g_j^-|| + beta' q^- < 0 (Farkas).
        """
        negatives = np.arange(self.positives, len(self.linear))
        return replace(self.restricted(negatives), price=1.0)


def simplex_column(program: ConeProgram) -> np.ndarray:
    """(K, 1) indicator of the positives, or (K, 0) without any."""
    column = np.zeros((len(program.linear), 1 if program.positives else 0))
    column[: program.positives] = 1.0
    return column
