"""Runs read back from their folders, grouped over seeds, and drawn."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from capo_ds.commands import plot
from capo_ds.config import load_config
from capo_ds.telemetry import plots
from capo_ds.telemetry.figures import FIGURES
from capo_ds.telemetry.plots import DRAWINGS, NothingToDrawError, draw
from capo_ds.telemetry.runs import NoRunError, group_runs, read_run, running_mean
from tests.conftest import REPOSITORY

RECIPE = REPOSITORY / "launchers" / "recipes" / "capo-embedded.yaml"
SHARES = [f"conflict/{s}_{w}" for s in ("all", "positive", "negative") for w in ("before", "after")]


def write_run(folder: Path, *overrides: str, steps: int = 4, metrics: list[str] = SHARES) -> Path:
    """A run's folder as training leaves it; its metrics are the step plus the seed."""
    config = load_config(RECIPE, [f"train.output_dir={folder}", *overrides])
    settings = config.model_dump(mode="json")
    lines = [{"step": 0, "eval/accuracy": 0.25, "time/evaluation": 3.0}]
    for step in range(1, steps + 1):
        names = ["reward/mean", *metrics]
        line = {"step": step, "time/rollout": 2.0} | dict.fromkeys(names, step + config.train.seed)
        lines.append(line | ({"eval/accuracy": 0.5} if step == 4 else {}))
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def labels(folders: list[Path]) -> list[tuple[str, int]]:
    return [(group.label, len(group.runs)) for group in group_runs(list(map(read_run, folders)))]


def test_runs_that_differ_in_the_seed_alone_are_one_group(tmp_path):
    folders = [write_run(tmp_path / str(seed), f"train.seed={seed}") for seed in range(3)]
    assert labels(folders) == [("CAPO", 3)]
    (group,) = group_runs([read_run(folder) for folder in folders])
    steps, values = group.curve("reward/mean")
    np.testing.assert_array_equal(steps, [1, 2, 3, 4])
    np.testing.assert_array_equal(values, [[1, 2, 3, 4], [2, 3, 4, 5], [3, 4, 5, 6]])


def test_labels_name_what_differs_and_no_more(tmp_path):
    overrides = {
        "a": ["capo.radius=0.1"],
        "b": ["capo.radius=1.0", "optimizer.learning_rate=0.002"],
        "c": ["capo.region=norm"],
        "d": ["aggregator=mean", "capo.radius=0.9"],  # C means nothing here
        "e": ["aggregator=mean", "train.seed=1"],
    }
    folders = [write_run(tmp_path / name, *values) for name, values in overrides.items()]
    assert labels(folders) == [
        ("CAPO, C = 0.1, trust region, learning_rate = 0.001", 1),
        ("CAPO, C = 1, trust region, learning_rate = 0.002", 1),
        ("CAPO, C = 0.5, norm ball, learning_rate = 0.001", 1),
        ("GRPO, learning_rate = 0.001", 2),
    ]
    assert labels(folders[3:]) == [("GRPO", 2)]


def test_seeds_of_uneven_length_are_compared_where_all_have_been(tmp_path):
    folders = [
        write_run(tmp_path / "short", steps=2),
        write_run(tmp_path / "long", "train.seed=1", steps=4),
    ]
    (group,) = group_runs([read_run(folder) for folder in folders])
    np.testing.assert_array_equal(group.curve("reward/mean")[0], [1, 2])


def test_running_mean_narrows_at_the_ends():
    np.testing.assert_allclose(
        running_mean(np.array([1.0, 2, 6, 3, 5]), 3), [1.5, 3, 11 / 3, 14 / 3, 4]
    )
    np.testing.assert_array_equal(running_mean(np.array([1.0, 2.0]), 1), [1, 2])
    np.testing.assert_array_equal(running_mean(np.array([]), 5), [])


def test_every_figure_that_is_told_can_be_drawn():
    assert FIGURES.keys() == DRAWINGS.keys()


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_drawn_as_png_and_svg_and_the_same_again(tmp_path, name):
    overrides = [["train.seed=1"], ["train.seed=2"], ["aggregator=mean"]]
    folders = [write_run(tmp_path / str(n), *values) for n, values in enumerate(overrides)]
    groups = group_runs([read_run(folder) for folder in folders])
    png, svg = draw(groups, name, tmp_path / "figures")
    assert png.read_bytes().startswith(b"\x89PNG")
    drawn = svg.read_text()
    assert drawn.count("<path") > 20
    draw(groups, name, tmp_path / "figures")
    assert svg.read_text() == drawn


def test_what_was_not_logged_is_not_drawn(tmp_path):
    plain = read_run(write_run(tmp_path / "plain", "measure_conflict=false", metrics=[]))
    with pytest.raises(NothingToDrawError, match="conflict/all_before"):
        draw(group_runs([plain]), "conflict", tmp_path / "figures")
    assert not (tmp_path / "figures" / "conflict.png").exists()


def test_a_folder_that_is_no_run_is_told_once(tmp_path, monkeypatch, capsys):
    run = write_run(tmp_path / "run")
    (tmp_path / "none").mkdir()
    words = [run, tmp_path / "none", "--output", tmp_path / "figures"]
    monkeypatch.setattr("sys.argv", ["capo plot", *map(str, words)])
    with pytest.raises(SystemExit, match="2"):
        plot.main()
    assert "none is no run: it has no config.yaml" in capsys.readouterr().err
    assert not (tmp_path / "figures").exists()
    (run / "metrics.jsonl").write_text("")
    with pytest.raises(NoRunError, match="has not finished a step"):
        read_run(run)


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_place_that_is_no_folder_is_told_once(tmp_path, monkeypatch, capsys, place):
    run = write_run(tmp_path / "run")
    (tmp_path / "file").write_text("here")
    monkeypatch.setattr("sys.argv", ["capo plot", str(run), "--output", str(tmp_path / place)])
    with pytest.raises(SystemExit, match="2"):
        plot.main()
    told = capsys.readouterr().err
    assert (
        told.startswith(f"error: --output: {tmp_path / place} cannot be") and told.count("\n") == 1
    )


def test_the_command_draws_what_can_be_drawn(tmp_path, monkeypatch, capsys):
    run = write_run(tmp_path / "plain", "measure_conflict=false", metrics=[])
    words = [run, "--output", tmp_path / "figures"]
    monkeypatch.setattr("sys.argv", ["capo plot", *map(str, words)])
    plot.main()
    assert "left out conflict: " in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        f"{name}.{kind}" for name in set(FIGURES) - {"conflict"} for kind in ("png", "svg")
    }


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "rewards", [[5e9], [0.0] * 3, [1e12, -1e12], [float("nan"), 1.0], [-3.0 + n for n in range(40)]]
)
def test_the_runs_figure_fits_any_rewards_and_whole_steps(tmp_path, monkeypatch, rewards):
    lines = [{"step": 0, "eval/accuracy": 0.2}]
    lines += [{"step": n, "reward/mean": reward} for n, reward in enumerate(rewards, start=1)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    drawn = []
    monkeypatch.setattr(plots.plt, "close", drawn.append)
    assert plots.reward_curve(tmp_path).read_bytes().startswith(b"\x89PNG")
    for axes in drawn[0].axes:
        low, high = axes.get_xlim()
        ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert ticks and all(tick == round(tick) for tick in ticks)
    known = [reward for reward in rewards if reward == reward]
    low, high = drawn[0].axes[0].get_ylim()
    assert low <= min(known) and max(known) <= high
