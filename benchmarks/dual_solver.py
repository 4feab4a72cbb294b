"""CAPO's solver against CVXPY's best, and the table behind the default price of slack.

    export OMP_NUM_THREADS=1 RAYON_NUM_THREADS=1   # of the linear algebra, and of Clarabel
    python benchmarks/dual_solver.py               # table, JSON, figure
    python benchmarks/dual_solver.py --prices      # what rho = 1, 10, 100 do
    python benchmarks/dual_solver.py --large 4096  # every family at C = 0.1 to 2, both regions

Times are CPU seconds on one thread, so that a busy machine does not spoil the ratios. Ours is timed
whole: `aggregate("capo", ...)`, with the feasibility verdict and the report. CVXPY's time is that
of building and solving; the factor F of the Gram matrix that it needs is given to it.
Each formulation and solver is tried; the fastest whose objective agrees to 1e-6 relative counts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from dual_cvxpy import cvxpy_runs
from dual_families import FAMILIES, MORE

from capo_ds.aggregation import Aggregation, GramProblem, aggregate, diagnose
from capo_ds.aggregation.diagnostics import Applied

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "dual_solver.json"
FIGURE = ROOT / "docs" / "figures" / "dual_solver.png"
ONE_THREAD = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")
BARS = {128: 3.0, 512: 10.0, 1024: 20.0}
AGREEMENT = 1e-6


PLACES = (("difference", 0.1), ("difference", 0.5), ("difference", 1.0), ("difference", 2.0))
PLACES += (("norm", 0.5),)
SECONDS = {2048: 0.5, 4096: 3.0, 8192: 20.0}  # what a solve may take
LARGE = ("near-orthogonal", "shared mode", "infeasible", "rank-deficient")


@dataclass(frozen=True)
class Row:
    """One family at one N; seconds, and the CVXPY run that counts (None where none was made)."""

    family: str
    count: int
    ours: float
    gap: float
    iterations: float
    fallback: float
    hard_feasible: float
    cvxpy: float | None
    cvxpy_by: str | None
    disagreement: float | None
    tried: dict[str, tuple[float, float]]

    @property
    def ratio(self) -> float | None:
        return None if self.cvxpy is None else self.cvxpy / self.ours


def measure(name: str, count: int, against_cvxpy: bool) -> Row:
    family = FAMILIES[name]
    problem = family.problem(count, seed=count)
    ours, answer = fastest(lambda: aggregate("capo", problem, radius=family.radius), repeats=5)
    tried = cvxpy_runs(problem, family.radius, answer) if against_cvxpy else {}
    agreeing = {by: run for by, run in tried.items() if run[1] <= AGREEMENT}
    best = min(agreeing or tried, key=lambda by: tried[by][0], default=None)
    report = answer.report
    return Row(
        name,
        count,
        ours,
        report["gap"],
        report["iterations"],
        report["fallback"],
        report["hard_feasible"],
        tried[best][0] if best else None,
        best,
        tried[best][1] if best else None,
        tried,
    )


def measure_large(count: int, names: list[str]) -> list[dict]:
    """CPU and wall seconds, gap, status and peak memory of families at every radius and region.

    The memory, in bytes, is what the process holds at most, the given Gram matrix included (Linux).
    """
    rows = []
    for name in names:
        family = (FAMILIES | MORE)[name]
        problem = family.problem(count, seed=count)
        for region, radius in PLACES:
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
            wall = time.perf_counter()
            seconds, answer = fastest(
                lambda p=problem, r=region, c=radius: aggregate("capo", p, radius=c, region=r),
                repeats=1,
            )
            wall = time.perf_counter() - wall
            row = {"family": name, "count": count, "region": region, "radius": radius}
            row |= {
                "seconds": seconds,
                "wall": wall,
                "gap": answer.report["gap"],
                "status": answer.status,
                "peak": peak_memory(),
            }
            rows.append(row)
        took = "  ".join(f"{row['seconds']:7.3f}s" for row in rows[-len(PLACES) :])
        worst = max(abs(row["gap"]) for row in rows[-len(PLACES) :])
        most = max(row["peak"] for row in rows[-len(PLACES) :]) / 2**30
        status = rows[-1]["status"]
        print(f"{name:16} {count:5d} {took}  gap {worst:.0e}  {most:.2f} GiB  {status}", flush=True)
    over = [row for row in rows if row["seconds"] > SECONDS.get(count, np.inf)]
    print(f"{len(rows) - len(over)} of {len(rows)} within {SECONDS.get(count)} s")
    return rows


def peak_memory() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def fastest(call: Callable[[], Aggregation], repeats: int) -> tuple[float, Aggregation]:
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        answer = call()
        seconds.append(time.process_time() - started)
    return min(seconds), answer


def print_table(rows: list[Row]) -> None:
    print(f"{'family':16} {'N':>5} {'ours':>9} {'CVXPY':>9} {'ratio':>6}  by / disagreement / gap")
    for row in rows:
        theirs = f"{row.cvxpy:8.3f}s {row.ratio:5.0f}x" if row.cvxpy else f"{'-':>9} {'-':>6}"
        detail = f"{row.cvxpy_by}, {row.disagreement:.0e}" if row.cvxpy else "-"
        flag = "" if row.disagreement is None or row.disagreement <= AGREEMENT else " (!)"
        print(
            f"{row.family:16} {row.count:5d} {row.ours:8.4f}s {theirs}  "
            f"{detail}{flag}, gap {row.gap:.0e}, {row.iterations:.0f} iterations"
        )
    for count, bar in BARS.items():
        ratios = [row.ratio for row in rows if row.count == count and row.ratio]
        if ratios:
            verdict = "met" if min(ratios) >= bar else "MISSED"
            print(f"N = {count}: at least {min(ratios):.0f}x, bar {bar:.0f}x: {verdict}")


def draw(rows: list[Row], path: Path) -> None:
    """Median and range over the families of both times against N."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for label, colour, value in (
        ("CVXPY, fastest solver that agrees to 1e-6", "tab:orange", lambda row: row.cvxpy),
        ("capo_ds", "tab:blue", lambda row: row.ours),
    ):
        counts = sorted({row.count for row in rows if value(row)})
        times = [[value(row) for row in rows if row.count == n and value(row)] for n in counts]
        axes.plot(counts, [np.median(t) for t in times], "o-", color=colour, label=label)
        axes.fill_between(
            counts, [min(t) for t in times], [max(t) for t in times], color=colour, alpha=0.2
        )
    axes.set(xscale="log", yscale="log", xlabel="samples N", ylabel="CPU seconds per solve")
    counts = sorted({row.count for row in rows})
    axes.set_xticks(counts, map(str, counts))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    print(f"wrote {path.relative_to(ROOT)}")


def print_prices(draws: int = 24, count: int = 100) -> None:
    """What the price of slack buys, by family and radius C; means over the draws.

    Whether the hard program is feasible, whether g~ solves it (no slack is left), the slack over
    the least possible one where it is infeasible, and the share of samples in conflict with g~.
    """
    print(f"{draws} draws, N = {count}")
    print(f"{'family':14} {'C':>4} {'rho':>5} feasible solved slack/least conflict: + -")
    for name in ("shared mode", "infeasible", "heavy-tailed"):
        problems = [FAMILIES[name].problem(count, seed) for seed in range(draws)]
        for radius in (0.1, 0.5):
            least = np.array([outcome(problem, radius, 1e4)[0] for problem in problems])
            infeasible = least > 1e-9
            for price in (0.01, 0.1, 1.0, 10.0, 100.0):
                outcomes = np.array([outcome(problem, radius, price) for problem in problems])
                slack = outcomes[:, 0]
                excess = np.median(slack[infeasible] / least[infeasible]) if any(infeasible) else 1
                print(
                    f"{name:14} {radius:4} {price:5} {np.sum(~infeasible):8} "
                    f"{np.sum(slack <= 1e-9):6} {excess:11.3f} {outcomes[:, 1].mean():11.3f} "
                    f"{outcomes[:, 2].mean():.3f}"
                )


def outcome(problem: GramProblem, radius: float, price: float) -> tuple[float, float, float]:
    """Slack relative to ||g_0|| and the mean norm; share of positives, negatives in conflict."""
    answer = aggregate("capo", problem, radius=radius, slack_price=price)
    slack = answer.report["slack_total"] / (problem.vanilla_norm * problem.norms.mean())
    measures = diagnose(problem, Applied.of([problem], answer.coefficients[None]))
    return slack, measures["conflict/positive_after"], measures["conflict/negative_after"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--prices", action="store_true", help="only the table of prices")
    parser.add_argument("--quick", action="store_true", help="N up to 512; writes nothing")
    parser.add_argument("--large", type=int, metavar="N", help="every family at this N, ours only")
    parser.add_argument("--families", nargs="+", default=[*FAMILIES, *MORE], help="for --large")
    arguments = parser.parse_args()
    if arguments.large:
        path = RESULTS.with_name(f"dual_solver_{arguments.large}.json")
        rows = measure_large(arguments.large, arguments.families)
        path.write_text(json.dumps(rows, indent=1) + "\n")
        print(f"wrote {path.relative_to(ROOT)}")
        return
    if arguments.prices:
        print_prices()
        return
    if any(os.environ.get(name) != "1" for name in ONE_THREAD):
        parser.error(f"set {' and '.join(ONE_THREAD)} to 1: CPU seconds add up over threads")
    rows = []
    for count in (
        (32, 64, 128, 256, 512) if arguments.quick else (32, 64, 128, 256, 512, 1024, 2048)
    ):
        for name in FAMILIES if count <= 1024 else LARGE:
            rows.append(measure(name, count, against_cvxpy=count <= 1024))
            print(f"\r{name} {count}        ", end="", flush=True)
    print()
    print_table(rows)
    if arguments.quick:
        return
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    machine = {"machine": platform.machine(), "python": platform.python_version(), "threads": 1}
    record = machine | {"rows": [asdict(row) | {"ratio": row.ratio} for row in rows]}
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    print(f"wrote {RESULTS.relative_to(ROOT)}")
    draw(rows, FIGURE)


if __name__ == "__main__":
    main()
