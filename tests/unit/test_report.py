"""The page of a run, from logs alone."""

import json
import os
import re
from pathlib import Path

import pytest
import yaml

from capo_ds.commands import report as command
from capo_ds.config import Config, ConfigError
from capo_ds.telemetry import tables
from capo_ds.telemetry.page import POINTS
from capo_ds.telemetry.report import read_samples, write_report
from capo_ds.telemetry.runs import NoRunError
from tests.unit.test_telemetry import response

METRICS = {"reward/mean": 0.1, "conflict/all_before": 0.3, "conflict/all_after": 0.1}


def run(folder: Path, metrics: list[dict], samples: list[dict] = (), **changes) -> Path:
    """A run's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(Config().model_dump(mode="json") | changes))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    if samples:
        lines = "".join(json.dumps(sample) + "\n" for sample in samples)
        (folder / "samples.jsonl").write_text(lines)
    return folder


def page(folder: Path) -> str:
    return write_report(folder).read_text(encoding="utf-8")


def test_everything_is_on_the_page_and_nothing_is_loaded(tmp_path):
    lines = [
        {"step": step, "conflict/heldout_all_after": 0.4, "time/solve": 1.0, "eval/accuracy": 0.5}
        | {"conflict/between/a/b": -0.25, "conflict/against/a/b": 0.5, "conflict/against/b/a": 0.4}
        | METRICS
        for step in range(1, 5)
    ]
    samples = [
        response(1, number, weight=weight, advantage=weight, cosine_after=cosine, completion=text)
        for number, (weight, cosine, text) in enumerate(
            [(3.0, 0.2, "raised most"), (-2.0, 0.1, "held down"), (0.5, -0.9, "in conflict")]
        )
    ]
    text = page(run(tmp_path / "run", lines, samples, aggregator="mgda"))
    for words in ("run: 4 steps", "aggregator", "mgda", "Unseen", "-0.25", "50%", "solve", "100%"):
        assert words in text, words
    most_raised = text[text.index("Most raised") : text.index("Most held down")]
    assert most_raised.index("raised most") < most_raised.index("in conflict")
    assert "held down" in text[text.index("Most held down") : text.index("Most in conflict")]
    first = text[text.index("Most in conflict with") :]
    assert first.index("in conflict</pre>") < first.index("raised most")
    assert not re.findall(r'(?:src|href)="(?!#)', re.sub(r'xlink:href="#', "", text))
    assert "<script" not in text


def test_texts_of_a_model_are_text(tmp_path):
    evil = '<script>alert(1)</script> & "quotes" \ud800 ü 中'
    text = page(run(tmp_path / "run", [{"step": 1} | METRICS], [response(1, completion=evil)]))
    assert "<script>alert" not in text and "&lt;script&gt;alert(1)" in text
    assert "ü 中" in text


@pytest.mark.parametrize(
    ("metrics", "samples"),
    [
        ([{"step": 1, "reward/mean": 0.0}], []),  # nothing measured, nothing sampled
        ([{"step": 0, "eval/accuracy": 0.4}], []),  # not a step finished
        ([{"step": 1} | METRICS], [response(1, weight=None, norm=None, cosine_after=None)]),
        ([{"step": 1} | METRICS], [response(1, advantage=0.0, norm=0.0, cosine_before=None)]),
        ([{"step": s, "loss/kl": 1e9 * s} | METRICS for s in range(1, 3)], []),
    ],
)
def test_odd_and_unfinished_runs_have_a_page(tmp_path, metrics, samples):
    assert "</html>" in page(run(tmp_path / "run", metrics, samples))


def test_a_long_run_makes_a_small_page(tmp_path):
    lines = [{"step": step} | METRICS for step in range(1, 20 * POINTS)]
    assert len(page(run(tmp_path / "run", lines))) < 1_000_000


def test_a_line_that_is_being_written_is_left_out(tmp_path):
    folder = run(tmp_path / "run", [{"step": 1} | METRICS], [response(1), response(2)])
    with open(folder / "samples.jsonl", "a") as file:
        file.write('{"step": 3, "prom')
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "rew')
    assert [sample["step"] for sample in read_samples(folder)] == [1, 2]
    assert "run: 1 steps" in page(folder)


def test_a_run_without_gradients_of_its_own_shows_its_latest_responses(tmp_path):
    nothing = dict.fromkeys(("norm", "cosine_before", "cosine_after", "xi", "weight"))
    text = page(run(tmp_path / "run", [{"step": 1} | METRICS], [response(1, **nothing)]))
    assert "step 1</pre>" in text and "Most raised" not in text


def test_a_service_that_is_not_installed_is_told(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()  # as W&B leaves it behind
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"train\.report_to: wandb needs the package wandb"):
        tables.check(["tensorboard", "wandb"])
    tables.check(["tensorboard", "csv"])


def test_a_resumed_run_is_the_same_run_of_weights_and_biases(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_NAME", "mine")
    ids = []
    for folder in ("one", "one", "other"):
        with tables.named(["wandb"], tmp_path / folder):
            ids.append(os.environ["WANDB_RUN_ID"])
            assert os.environ["WANDB_NAME"] == "mine"
            assert os.environ["WANDB_DIR"] == str(tmp_path / folder)
    assert ids[0] == ids[1] != ids[2]
    assert "WANDB_RUN_ID" not in os.environ and os.environ["WANDB_NAME"] == "mine"


def test_weights_and_biases_takes_the_id(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", exc_type=ImportError)
    monkeypatch.setenv("WANDB_MODE", "offline")
    found = []
    for _ in range(2):
        with tables.named(["wandb"], tmp_path / "run"):
            run = wandb.init(project="capo_ds")
            found.append(run.id)
            run.finish()
    assert found == [(tmp_path / "run" / tables.WANDB_ID).read_text()] * 2


def test_what_is_no_run_is_told(tmp_path, monkeypatch, capsys):
    with pytest.raises(NoRunError):
        write_report(tmp_path)
    monkeypatch.setattr("sys.argv", ["report", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2 and str(tmp_path) in capsys.readouterr().err
