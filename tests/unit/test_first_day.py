"""What a first run tells: hints, text that fits the terminal, and the adapter's card."""

import sys

import yaml

from capo_ds.config import parse_config
from capo_ds.telemetry.card import model_card
from capo_ds.telemetry.summary import signal_hint
from capo_ds.terminal import aligned, columns, wrapped


def signal(silent: int, steps: int, right: float) -> str | None:
    lines = [{"step": 0, "eval/accuracy": 0.1}]
    for step in range(steps):
        lines.append({"reward/zero_advantage": float(step < silent), "reward/accuracy": right})
    return signal_hint(lines)


def test_a_run_without_signal_is_told_to_warm_up():
    assert signal(0, 10, 0.5) is None
    assert signal(5, 10, 0.0) is None
    assert signal(0, 0, 0.0) is None
    assert "10 of 10 steps" in signal(10, 10, 0.0) and "launchers/warmup.py" in signal(10, 10, 0.0)
    assert "harder problems" in signal(9, 10, 1.0)


def test_text_fits_its_terminal(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    text = "objective  " + ", ".join(f"setting_{n} value" for n in range(20))
    lines = wrapped(text, columns(sys.stdout), indent=11).splitlines()
    assert max(map(len, lines)) <= 80 and all(line[:11] == " " * 11 for line in lines[1:])
    monkeypatch.delenv("COLUMNS")
    assert wrapped(text, columns(sys.stdout)) == text  # captured: no terminal
    rows = [["benchmark", "a" * 30, "b" * 30], ["gsm8k", "1", "2"]]
    assert aligned(rows, None).splitlines()[0].endswith("b" * 30)
    assert len(aligned(rows, 60).splitlines()) == 3


def test_an_adapters_card_says_what_it_is(tmp_path):
    config = parse_config(
        {"capo": {"radius": 0.25}, "task": {"name": "gsm8k"}, "train": {"steps": 40}}
    )
    accuracy = {"before": 0.1, "latest": 0.55, "best": 0.6}
    card = model_card(config, "Qwen/Qwen2.5-1.5B", 30, accuracy, 20)
    _, front, body = card.split("---\n", 2)
    told = yaml.safe_load(front)
    assert told["base_model"] == "Qwen/Qwen2.5-1.5B" and told["library_name"] == "peft"
    for words in ("CAPO, C = 0.25", "gsm8k", "30 of 40 steps", "10.0%", "55.0%", "60.0% |"):
        assert words in body
    assert yaml.safe_load(body.split("```yaml\n")[1].split("```")[0])["capo"] == {"radius": 0.25}
    assert "base_model" not in yaml.safe_load(
        model_card(config, str(tmp_path), 1, accuracy, 1).split("---\n")[1]
    )
    assert "[More Information Needed]" not in card
