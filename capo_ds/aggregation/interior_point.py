"""Primal-dual interior point for the dual of CAPO's cone program.

The square root is the partial minimum of a function that is jointly convex and smooth for tau > 0:

    R sqrt(xi' Q xi) = min over tau > 0 of  R/2 (xi' Q xi / tau + tau),

so with lam = tau / R the dual is a minimisation over (xi, lam) with linear constraints only:

    f(xi, lam) = xi' Q xi / (2 lam) + lam R^2 / 2 + q' xi.

At the optimum 1/lam = R / ||dg||, so the primal point is g = c + sum_i (xi_i / lam) g_i, and lam is
the multiplier of the ball ||g - c||^2 / 2 <= R^2 / 2. The optimality conditions, each product
relaxed to mu > 0, are

    Q xi / lam + q - t 1_P - z + u_N = 0      z = slack of <g, g_i> >= t (P) or -s (N);  u = s
    R^2/2 - xi' Q xi / (2 lam^2) - w = 0      w = slack of the ball
    1' xi_P = 1
    xi z = mu,  (rho - beta) u = mu,  lam w = mu.

Each iteration takes one Cholesky factor of Q / lam + diagonal, used for a predictor and a corrector
(Mehrotra). Holding lam fixed solves min xi' Q xi / (2 lam) + q' xi instead: the proximal point of
the primal objective at c with step 1/lam, which `capo` uses where the ball is inactive.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from capo_ds.aggregation.program import ConeProgram

TO_BOUNDARY = 0.995
MAX_ITERATIONS = 100


@dataclass(frozen=True)
class InteriorPoint:
    xi: np.ndarray
    step: np.ndarray
    gap: float
    iterations: int


def solve(program, tolerance=1e-9, fixed_lam=None, trace=False):
    Q, q, R, m, rho = program.gram, program.linear, program.radius, program.positives, program.price
    K = len(q)
    n = K - m
    boxed = np.isfinite(rho) and n > 0
    pos = np.zeros(K)
    pos[:m] = 1.0
    norms = np.sqrt(np.diag(Q))
    x = np.full(K, 1.0 / max(m, 1))
    if np.isfinite(rho):
        x[m:] = np.minimum(x[m:], rho / 2)
    Qx = Q @ x
    lam = 2 * np.sqrt(x @ Qx) / R if x @ Qx > 0 else 1.0
    lam = max(lam, 0.1 * float(x @ norms) / R)
    grad = Qx / lam + q
    typical = np.abs(grad).mean() + np.abs(q).mean()
    t = (grad[:m].min() - typical) if m else 0.0
    resid = grad - t * pos
    z = np.where(resid > 0, resid, 0) + typical * (1 - pos)
    z[:m] = resid[:m]
    u = (z - resid)[m:] if boxed else np.zeros(n)
    w = max(R * R / 2 - x @ Qx / (2 * lam**2), 0.1 * R * R)
    best = None
    for it in range(MAX_ITERATIONS):
        b = rho - x[m:]
        ncomp = K + 1 + (n if boxed else 0)
        mu = (x @ z + (b @ u if boxed else 0.0) + lam * w) / ncomp
        # certificate
        nrm = np.sqrt(max(x @ Qx, 0))
        cand = x * min(1 / lam, R / nrm if nrm > 0 else np.inf)
        xf = x.copy()
        if m:
            xf[:m] /= xf[:m].sum()
        gap = program.gap(xf, cand)
        scale = program.cancellation_scale(xf)
        if trace:
            print(
                it,
                f"mu {mu:.2e} gap {gap:.2e} rel {gap / scale:.2e} lam {lam:.2e} |dg|R {nrm * R:.2e}",
            )
        if best is None or gap < best.gap:
            best = InteriorPoint(xf, cand, gap, it)
        if gap <= tolerance * scale:
            break
        r_x = Qx / lam + q - t * pos - z
        if boxed:
            r_x[m:] += u
        xQx = x @ Qx
        r_l = R * R / 2 - xQx / (2 * lam**2) - w
        r_e = pos @ x - 1
        D = z / x
        if boxed:
            D[m:] += u / b
        K_ = Q / lam
        K_[np.diag_indices(K)] += D
        try:
            F = cho_factor(K_, lower=True, overwrite_a=True, check_finite=False)
        except LinAlgError:
            break
        y = x / lam
        # K y_sol = p, p = Qx/lam^2 = (K - D) x / lam^2 * lam
        KDx = cho_solve(F, D * y, check_finite=False)
        Kp = y - KDx  # K^-1 (Q x / lam^2) * lam ... p = Qx/lam^2
        Kp = Kp / 1.0
        Ke = cho_solve(F, pos, check_finite=False)
        p = Qx / lam**2

        def newton(cz, cu, cw):
            r1 = -r_x + cz / x
            if boxed:
                r1[m:] -= cu / b
            r2 = -r_l + cw / lam
            a = cho_solve(F, r1, check_finite=False)
            # dx = a + Kp dlam + Ke dt ;  -p'dx + h dlam = r2 ; e'dx = -r_e
            h_minus = w / lam + p @ KDx
            if m:
                M = np.array([[h_minus, -p @ Ke], [pos @ Kp, pos @ Ke]])
                dl, dt = np.linalg.solve(M, [r2 + p @ a, -r_e - pos @ a])
            else:
                dl, dt = (r2 + p @ a) / h_minus, 0.0
            dx = a + Kp * dl + Ke * dt
            dz = (cz - z * dx) / x
            du = (cu + u * dx[m:]) / b if boxed else np.zeros(n)
            dw = (cw - w * dl) / lam
            return dx, dl, dt, dz, du, dw

        def maxstep(dx, dl, dz, du, dw):
            s = 1.0
            for v, dv in (
                (x, dx),
                (z, dz),
                (u, du) if boxed else (x, dx),
                (b, -dx[m:]) if boxed else (x, dx),
            ):
                neg = dv < 0
                if neg.any():
                    s = min(s, (-v[neg] / dv[neg]).min())
            for v, dv in ((lam, dl), (w, dw)):
                if dv < 0:
                    s = min(s, -v / dv)
            return s

        cz, cu, cw = -x * z, -b * u if boxed else None, -lam * w
        dx, dl, dt, dz, du, dw = newton(cz, cu, cw)
        s = maxstep(dx, dl, dz, du, dw)
        mu_aff = (
            (x + s * dx) @ (z + s * dz)
            + (((b - s * dx[m:]) @ (u + s * du)) if boxed else 0.0)
            + (lam + s * dl) * (w + s * dw)
        ) / ncomp
        sigma = min(max((mu_aff / mu), 0), 1) ** 3
        target = sigma * mu
        cz = target - x * z - dx * dz
        cu = target - b * u + dx[m:] * du if boxed else None
        cw = target - lam * w - dl * dw
        dx, dl, dt, dz, du, dw = newton(cz, cu, cw)
        s = min(1.0, TO_BOUNDARY * maxstep(dx, dl, dz, du, dw))
        if trace:
            print("     step", s, "sigma", sigma, "res", np.abs(r_x).max(), abs(r_l))
        x, lam, t, z, u, w = (
            x + s * dx,
            lam + s * dl,
            t + s * dt,
            z + s * dz,
            u + s * du,
            w + s * dw,
        )
        Qx = Q @ x
    return best
