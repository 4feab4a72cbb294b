"""The parts of a self-contained HTML page: its frame, cards with curves, tables and text."""

from __future__ import annotations

import html
import io
import json
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")  # no display
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

from capo_ds.telemetry.plots import COLOURS, DASHES, SMOOTHING, STYLE
from capo_ds.telemetry.runs import running_mean, series

POINTS = 400  # of a curve: more than a screen shows
LONG = 20  # points of a curve
TEXT = 1200  # characters of a text
STYLE_SHEET = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2329; background: #f6f7f8; margin: 0; }
main { max-width: 1200px; margin: 0 auto; padding: 16px; }
h1 { font-size: 1.5rem; margin: 8px 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 28px 0 8px; }
h3 { font-size: 1rem; margin: 16px 0 6px; }
nav a { margin-right: 14px; white-space: nowrap; }
a { color: #0072B2; }
p.note { color: #57606a; margin: 4px 0 10px; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr));
  gap: 12px; }
.card { background: #fff; border: 1px solid #dfe3e6; border-radius: 6px; padding: 10px; }
.card svg { width: 100%; height: auto; display: block; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; background: #fff; }
td, th { border: 1px solid #dfe3e6; padding: 3px 8px; text-align: left; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
td.value { overflow-wrap: anywhere; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 4px 0; background: #f6f7f8;
  padding: 6px; border-radius: 4px; font-size: 13px; }
summary { cursor: pointer; margin: 6px 0; }
.right { color: #00714f; } .wrong, .unformatted { color: #a63c00; }
"""


def page(title: str, sections: dict[str, str]) -> str:
    """The whole page: a heading, links to the sections, and their HTML."""
    links = "".join(f'<a href="#{key.replace(" ", "-")}">{key}</a>' for key in sections)
    body = "".join(
        f'<h2 id="{key.replace(" ", "-")}">{key}</h2>\n{text}\n' for key, text in sections.items()
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escaped(title)}</title><style>{STYLE_SHEET}</style></head><body><main>"
        f"<h1>{escaped(title)}</h1><nav>{links}</nav>\n{body}</main></body></html>\n"
    )


def panel(metrics: list[dict[str, float]], title: str, lines: dict[str, str]) -> str:
    """A card with curves; empty if none of them was logged."""
    found = {name: series(metrics, name) for name in lines}
    found = {name: (steps, values) for name, (steps, values) in found.items() if len(steps)}
    if not found:
        return ""
    with plt.rc_context({**STYLE, "svg.fonttype": "none", "font.size": 9}):
        figure, axes = plt.subplots(figsize=(4.4, 2.6), layout="constrained")
        for index, (name, (steps, values)) in enumerate(found.items()):
            smooth = running_mean(np.asarray(values), SMOOTHING) if len(steps) > LONG else values
            stride = max(1, len(steps) // POINTS)
            style = {"marker": "o", "markersize": 3} if len(steps) < LONG else {}
            axes.plot(
                steps[::stride],
                smooth[::stride],
                color=COLOURS[index],
                linestyle=DASHES[index % len(DASHES)],
                label=lines[name],
                **style,
            )
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlabel("step")
        if any(lines[name] for name in found):
            figure.legend(loc="outside lower center", ncols=2, fontsize=8)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    plt.close(figure)
    svg = drawn.getvalue()
    return f'<div class="card"><h3>{escaped(title)}</h3>{svg[svg.index("<svg") :]}</div>'


def rows(values: dict[str, Any]) -> str:
    """A table of keys and values."""
    lines = "".join(
        f'<tr><td>{escaped(key)}</td><td class="value">'
        f"{escaped(json.dumps(value, ensure_ascii=False))}</td></tr>"
        for key, value in values.items()
    )
    return f'<div class="scroll"><table>{lines}</table></div>'


def matrix(names: Sequence[str], value: Callable[[str, str], float | None], form: str) -> str:
    """A square table."""
    head = "".join(f"<th>{escaped(name)}</th>" for name in names)
    lines = "".join(
        f"<tr><th>{escaped(row)}</th>"
        + "".join(
            f'<td class="number">{"-" if (v := value(row, name)) is None else form.format(v)}</td>'
            for name in names
        )
        + "</tr>"
        for row in names
    )
    return f"<table><tr><th></th>{head}</tr>{lines}</table>"


def shortened(text: str) -> str:
    return text if len(text) <= TEXT else f"{text[:TEXT]} … ({len(text) - TEXT} characters more)"


def escaped(value: Any) -> str:
    """For HTML; what UTF-8 cannot hold is replaced."""
    return html.escape(str(value).encode("utf-8", "replace").decode("utf-8"))
