"""Runs that come apart, and runs that do not."""

import json

import numpy as np
import pytest

from capo_ds.callbacks import Event
from capo_ds.telemetry.divergence import WINDOW, Signs, Watch
from capo_ds.telemetry.metrics import METRICS_FILE


def steps(count: int, **changes) -> list[dict[str, float]]:
    """Of a run that learns: reward from 0 to .3, entropy from .2 to .1, KL to .1; with changes."""
    noise = np.random.default_rng(0)
    share = np.linspace(0, 1, count)
    columns = {
        "reward/mean": 0.3 * share + noise.normal(0, 0.05, count),
        "reward/group_std": np.full(count, 0.5),
        "rollout/entropy": 0.2 - 0.1 * share,
        "loss/kl": 0.1 * share,
    } | changes
    return [
        {name: float(values[step]) for name, values in columns.items()} for step in range(count)
    ]


def told(lines: list[dict[str, float]]) -> list[tuple[int, str]]:
    signs = Signs()
    return [(step, words) for step, line in enumerate(lines, start=1) for words in signs.add(line)]


def halves(before: float, after: float, count: int = 40) -> np.ndarray:
    return np.repeat([before, after], count // 2)


@pytest.mark.parametrize("seed_of_noise", range(3))
def test_a_run_that_learns_is_left_alone(seed_of_noise):
    noise = np.random.default_rng(seed_of_noise).normal(0, 0.1, 400)
    assert told(steps(400, **{"reward/mean": np.linspace(0, 0.3, 400) + noise})) == []


@pytest.mark.parametrize(
    ("name", "before", "after", "words"),
    [
        ("reward/mean", 0.0, -1.0, "the reward has fallen to -0.3, from 0"),
        ("rollout/entropy", 0.2, 0.001, "the entropy is gone"),
        ("rollout/entropy", 0.2, 3.0, "the entropy has spread"),
        ("loss/kl", 0.0, 20.0, "the model is far from its reference"),
    ],
)
def test_each_sign_is_told_once_and_soon(name, before, after, words):
    found = told(steps(40, **{name: halves(before, after)}))
    assert len(found) == 1 and words in found[0][1], found
    assert 20 < found[0][0] <= 20 + WINDOW


def test_a_run_without_kl_has_the_others():
    lines = steps(40, **{"reward/mean": halves(0.0, -1.0)})
    for line in lines:
        del line["loss/kl"]
    assert len(told(lines)) == 1


@pytest.mark.parametrize("stop", [False, True])
def test_a_resumed_run_remembers_and_may_end(tmp_path, capsys, stop):
    lines = steps(40, **{"reward/mean": halves(0.0, -1.0)})
    log = [json.dumps({"step": step} | line) + "\n" for step, line in enumerate(lines, start=1)]
    (tmp_path / METRICS_FILE).write_text("".join(log[:22]))  # and the process is another
    events = [Event(step, line) for step, line in enumerate(lines, start=1)][22:]
    watch = Watch(tmp_path, stop)
    for event in events:
        watch.on_step_end(event)
    printed = capsys.readouterr().err
    assert printed.count("the reward has fallen") == 1 and "optimizer.learning_rate" in printed
    assert [event.stopping for event in events].count(True) == int(stop)
