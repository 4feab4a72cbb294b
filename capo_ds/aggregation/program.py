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
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

# Inner products of float64 vectors carry a relative error of about 1e-16, so a norm taken from a
# Gram matrix, sqrt(xi' Q xi), is noise below 1e-8 of what was added up. dg counts as zero there.
ZERO_DIRECTION = 1e-7


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

    def direction_norm(self, xi: np.ndarray) -> float:
        """||dg|| = sqrt(xi' Q xi)."""
        return float(np.sqrt(max(xi @ self.gram @ xi, 0.0)))

    def dual_value(self, xi: np.ndarray) -> float:
        """R sqrt(xi' Q xi) + xi' q."""
        return self.radius * self.direction_norm(xi) + float(self.linear @ xi)

    def products(self, step: np.ndarray) -> np.ndarray:
        """(K,) <g, g_i> of the point g = c + sum_i step_i g_i."""
        return self.linear + self.gram @ step

    def alignment(self, products: np.ndarray) -> float:
        """min_i <g, g_i^+>, or 0 without positives."""
        return float(products[: self.positives].min()) if self.positives else 0.0

    def slacks(self, products: np.ndarray) -> np.ndarray:
        """(n,) s_j = max(0, -<g, g_j^->)."""
        return np.maximum(0.0, -products[self.positives :])

    def primal_value(self, products: np.ndarray, price: float | None = None) -> float:
        """min_i <g, g_i^+> - rho sum_j s_j at a point of the ball, given its products."""
        total = float(self.slacks(products).sum())
        price = self.price if price is None else price
        return self.alignment(products) - (price * total if total else 0.0)

    def boundary_step(self, xi: np.ndarray) -> np.ndarray:
        """(K,) the recovery R xi / ||dg||, for dg != 0."""
        return (self.radius / self.direction_norm(xi)) * xi

    def cancellation_scale(self, xi: np.ndarray) -> float:
        """Sum of the magnitudes that `dual_value` adds up: the unit in which its error is small."""
        norms = np.sqrt(np.maximum(np.diag(self.gram), 0.0))
        return float(xi @ (self.radius * norms + np.abs(self.linear)))

    def direction_vanishes(self, xi: np.ndarray) -> bool:
        """Whether dg is zero to the precision of a Gram matrix."""
        norms = np.sqrt(np.maximum(np.diag(self.gram), 0.0))
        return self.direction_norm(xi) <= ZERO_DIRECTION * float(xi @ norms)

    def gap(self, xi: np.ndarray, step: np.ndarray) -> float:
        """Dual minus primal value at (xi, c + sum_i step_i g_i); zero only at an optimal pair.

        For rho = inf the primal value would be -inf at the slightest rounding of a constraint. Any
        price above max_j beta_j has the same optimum as the hard program and admits the same xi,
        so the pair is judged in the elastic program of price 2 max_j beta_j + 1.
        """
        price = self.price
        if np.isinf(price):
            price = 2.0 * float(np.max(xi[self.positives :], initial=0.0)) + 1.0
        return self.dual_value(xi) - self.primal_value(self.products(step), price)

    def feasibility_program(self) -> ConeProgram:
        """min total slack over the ball: the same program without positives, at price 1.

        The hard program is infeasible exactly if the optimum is below zero, that is, if some
        beta >= 0 has R ||sum_j beta_j g_j^-|| + beta' q^- < 0 (Farkas).
        """
        kept = slice(self.positives, None)
        return replace(
            self,
            gram=self.gram[kept, kept],
            linear=self.linear[kept],
            positives=0,
            price=1.0,
        )
