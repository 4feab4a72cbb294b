"""Draw the worked example of docs/mathematics.md: python docs/figures/worked_example.py"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot

from capo_ds.aggregation import GramProblem, aggregate

ROWS = np.array([[7.0, -2.0], [-1.0, 2.0]])  # g_1 (positive), g_2 (negative)
RADIUS = 0.5


def main() -> None:
    positive = np.array([True, False])
    problem = GramProblem(ROWS @ ROWS.T, positive, ~positive)
    vanilla = problem.average @ ROWS
    solved = {
        price: aggregate("capo", problem, radius=RADIUS, slack_price=price).coefficients @ ROWS
        for price in (10.0, 3.0)
    }

    figure, axes = pyplot.subplots(figsize=(7.4, 3.9))
    x = np.array([-2.0, 9.6])
    axes.fill_between(x, x / 2, -10, color="tab:red", alpha=0.08)  # <g, g_2> = -x + 2 y < 0
    axes.plot(x, x / 2, color="tab:red", lw=1)
    axes.text(5.2, 0.4, r"$\langle g, g_2^-\rangle < 0$: raises the" "\nnegative's likelihood")
    ball = pyplot.Circle(vanilla, RADIUS * problem.vanilla_norm, fill=False, ls="--")
    axes.add_patch(ball)
    axes.text(2.0, -1.9, r"$\|g - g_0\| \leq C\,\|g_0\|$")
    for vector, name, colour in (
        (ROWS[0], r"$g_1^+ = (7, -2)$", "tab:green"),
        (ROWS[1], r"$g_2^- = (-1, 2)$", "tab:red"),
        (vanilla, r"$g_0 = (3, 0)$", "black"),
        (solved[3.0], r"$\rho = 3$", "tab:purple"),
        (solved[10.0], r"$\tilde g = (3, 1.5)$", "tab:blue"),
    ):
        axes.annotate("", vector, (0, 0), arrowprops={"arrowstyle": "->", "color": colour, "lw": 2})
        axes.annotate(name, vector, (4, 6), textcoords="offset points", color=colour)
    axes.set(xlim=(-2, 9.6), ylim=(-2.6, 3), aspect="equal")
    axes.axhline(0, color="grey", lw=0.5)
    axes.axvline(0, color="grey", lw=0.5)
    figure.tight_layout()
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=150)


if __name__ == "__main__":
    main()
