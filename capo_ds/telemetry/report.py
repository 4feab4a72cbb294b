"""One self-contained HTML page of a run, from its logs alone: no network, no other file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from capo_ds.config import parse_config
from capo_ds.telemetry.metrics import SAMPLES_FILE, STARTS_FILE, flat_settings, whole_lines
from capo_ds.telemetry.page import LONG, escaped, matrix, page, panel, rows, shortened
from capo_ds.telemetry.plots import CONFLICTS, SAMPLES, SMOOTHING
from capo_ds.telemetry.runs import CONFIG_FILE, read_run, series

FILE = "report.html"
SHOWN = 5  # responses in each list
MOST_STEPS = 200  # logged steps of which responses are ranked, the latest
# Title, and the metric of each line.
CURVES = {
    "Reward": {"reward/mean": "mean of the step's responses"},
    "Accuracy": {"reward/accuracy": "training", "eval/accuracy": "test"},
    "Format and truncation": {
        "reward/formatted": "in the format",
        "rollout/truncated": "cut at the limit",
    },
    "Groups without signal": {
        "reward/groups_all_right": "all right",
        "reward/groups_all_wrong": "all wrong",
    },
    "Entropy (nats a token)": {"rollout/entropy": ""},
    "KL to the reference (nats a token)": {"loss/kl": ""},
    "Response length (tokens)": {"rollout/length": ""},
    "Gradient norm": {"loss/grad_norm": "before clipping"},
    "Learning rate": {"loss/learning_rate": ""},
    "Clipped tokens": {"loss/clip_fraction": ""},
    "Sampler against trainer (nats)": {"rollout/log_prob_difference": ""},
    "Trust-region radius C": {"capo/radius": ""},
}
EXPECTED = {
    "Cosine with the mean gradient of unseen prompts": {
        "conflict/heldout_cosine": "applied",
        "conflict/heldout_cosine_before": "plain average",
    }
}


def write_report(folder: Path, output: Path | None = None) -> Path:
    """Write the page of the run in `folder` (beside its logs, or to `output`); its path.

    Raises:
        NoRunError: the folder has no run's config and metrics.
    """
    run = read_run(folder)
    metrics, samples = run.metrics, read_samples(folder)
    sections = {
        "Settings": settings(folder),
        "Learning": curves(metrics, CURVES),
        "Conflict": conflict(metrics),
        "Data sets": data_sets(metrics),
        "Responses": responses(samples),
        "Time": phases(metrics),
    }
    sections = {title: body for title, body in sections.items() if body}
    steps = max((line["step"] for line in metrics), default=0)
    title = f"{folder.resolve().name}: {steps} steps"
    path = output or folder / FILE
    path.write_text(page(title, sections), encoding="utf-8")
    return path


def read_samples(folder: Path) -> list[dict[str, Any]]:
    """Of the latest logged steps; none if there is no such log."""
    path = folder / SAMPLES_FILE
    if not path.exists():
        return []
    kept: dict[int, list[dict[str, Any]]] = {}
    for line in whole_lines(path):
        kept.setdefault(line["step"], []).append(line)
        if len(kept) > MOST_STEPS:
            del kept[next(iter(kept))]
    return [sample for step in kept.values() for sample in step]


def settings(folder: Path) -> str:
    """What differs from the defaults, then everything, and what made the run."""
    config = flat_settings(yaml.safe_load((folder / CONFIG_FILE).read_text()))
    defaults = flat_settings(parse_config({}).model_dump(mode="json"))
    changed = {key: value for key, value in config.items() if value != defaults.get(key)}
    made = {}
    if (folder / STARTS_FILE).exists():
        made = list(whole_lines(folder / STARTS_FILE))[-1:]
        made = made[0] if made else {}
    return (
        "<h3>What differs from the defaults</h3>"
        + rows(changed)
        + f"<details><summary>All {len(config)} settings</summary>{rows(config)}</details>"
        + f"<details><summary>Made by</summary>{rows(made)}</details>"
    )


def curves(metrics: list[dict[str, float]], wanted: dict[str, dict[str, str]]) -> str:
    """A card for each title of which something was logged."""
    cards = [panel(metrics, title, lines) for title, lines in wanted.items()]
    if not any(cards):
        return ""
    note = f"Curves of more than {LONG} points are running means over {SMOOTHING} steps."
    return f'<p class="note">{note}</p><div class="grid">{"".join(cards)}</div>'


def conflict(metrics: list[dict[str, float]]) -> str:
    """Fitted and held-out shares side by side, for each kind of sample."""
    wanted = {
        f"Share in conflict: {title}": {
            f"conflict/{key.format(kind)}": label.replace("$", "").replace(r"\tilde g", "g~")
            for key, label in CONFLICTS.items()
        }
        for kind, title in SAMPLES.items()
    }
    found = curves(metrics, wanted | EXPECTED)
    note = (
        "A sample is in conflict where its own gradient has a negative cosine with the one named. "
        "<em>Unseen</em>: an aggregate of half of the prompts, measured on the other half."
    )
    return f'<p class="note">{note}</p>{found}' if found else ""


def data_sets(metrics: list[dict[str, float]]) -> str:
    """How data sets pull on each other: matrices of means over the run."""
    means: dict[tuple[str, str, str], float] = {}
    for name in {name for line in metrics for name in line}:
        parts = name.split("/")
        if parts[0] == "conflict" and parts[1] in ("between", "against") and len(parts) == 4:
            values = series(metrics, name)[1]
            means[parts[1], parts[2], parts[3]] = sum(values) / len(values)
    names = sorted({key[1] for key in means if key[0] == "against"})
    if len(names) < 2:
        return ""
    mirrored = {("between", b, a): v for (kind, a, b), v in means.items() if kind == "between"}
    means = mirrored | means
    shares = matrix(names, lambda a, b: means.get(("against", a, b)), "{:.0%}")
    angles = matrix(names, lambda a, b: 1.0 if a == b else means.get(("between", a, b)), "{:+.2f}")
    return (
        '<p class="note">Means over the run.</p><div class="grid">'
        '<div class="card scroll"><h3>Samples of a row against the mean gradient of a column</h3>'
        f"{shares}</div>"
        f'<div class="card scroll"><h3>Cosine of the mean gradients</h3>{angles}</div></div>'
    )


def responses(samples: list[dict[str, Any]]) -> str:
    """Those with the largest and the smallest coefficient, and those most in conflict."""
    heard = [sample for sample in samples if sample.get("weight") is not None]
    if not heard:
        return unheard(samples)
    held = [s for s in heard if (s["advantage"] or 0) < 0]
    raised = [s for s in heard if (s["advantage"] or 0) > 0]
    angled = [s for s in heard if s["cosine_after"] is not None and s["advantage"]]
    steps = sorted({sample["step"] for sample in samples})

    def pull(sample: dict[str, Any]) -> float:
        return -sample["weight"] * (sample["norm"] or 0.0)

    lists: dict[str, list[dict[str, Any]]] = {
        "Most raised": sorted(raised, key=pull),
        "Most held down": sorted(held, key=pull),
        "Most in conflict with what was applied": sorted(angled, key=lambda s: s["cosine_after"]),
    }
    note = (
        f"Of all {len(samples)} responses to the {len(steps)} logged steps ({steps[0]} to "
        f"{steps[-1]}). Raised and held down: by weight times gradient norm; a weight of 1 is the "
        "plain average's."
    )
    parts = [
        f'<h3>{title}</h3><div class="grid">{"".join(map(card, found[:SHOWN]))}</div>'
        for title, found in lists.items()
    ]
    return f'<p class="note">{note}</p>' + "".join(parts)


def unheard(samples: list[dict[str, Any]]) -> str:
    """The latest responses of a run that formed no gradients of their own."""
    if not samples:
        return ""
    shown = "".join(map(card, samples[-2 * SHOWN :]))
    note = "The latest logged; the run formed no gradients of single responses."
    return f'<p class="note">{note}</p><div class="grid">{shown}</div>'


def card(sample: dict[str, Any]) -> str:
    """A response with what became of it."""

    def told(value: float | None, form: str) -> str:
        return "-" if value is None else form.format(value)

    facts = {
        "reward": told(sample["reward"], "{:+.2f}"),
        "advantage": told(sample["advantage"], "{:+.2f}"),
        "weight": told(sample["weight"], "{:+.2f}"),
        "norm": told(sample["norm"], "{:.3g}"),
        "cosine with g_0": told(sample["cosine_before"], "{:+.2f}"),
        "with g~": told(sample["cosine_after"], "{:+.2f}"),
        "xi": told(sample["xi"], "{:.2g}"),
        "tokens": f"{sample['length']}{' (cut)' if sample['truncated'] else ''}",
    }
    line = " · ".join(f"{key} {escaped(value)}" for key, value in facts.items())
    verdict, why = sample["verdict"], sample.get("why", "")
    return (
        f'<div class="card"><b>step {sample["step"]}, prompt {sample["prompt_number"]}</b>, '
        f'{escaped(sample["source"])}: <span class="{verdict.split()[0]}">{escaped(verdict)}</span>'
        f"{escaped(f', {why}' if why else '')}"
        f" (reference {escaped(sample['answer'])})<br>{line}"
        f"<pre>{escaped(shortened(sample['prompt']))}</pre>"
        f"<pre>{escaped(shortened(sample['completion']))}</pre></div>"
    )


def phases(metrics: list[dict[str, float]]) -> str:
    """Seconds by phase over the whole run."""
    spent: dict[str, float] = {}
    for line in metrics:
        for name, seconds in line.items():
            if name.startswith("time/"):
                key = name.removeprefix("time/").replace("_", " ")
                spent[key] = spent.get(key, 0.0) + seconds
    whole = sum(spent.values())
    if not whole:
        return ""
    lines = "".join(
        f'<tr><td>{escaped(name)}</td><td class="number">{seconds:.1f} s</td>'
        f'<td class="number">{seconds / whole:.0%}</td></tr>'
        for name, seconds in sorted(spent.items(), key=lambda item: -item[1])
    )
    return f'<div class="scroll"><table>{lines}</table></div>'
