"""launchers/reproduce.py: the whole of it on the embedded model, and its table."""

import json

import pytest

from capo_ds.commands import reproduce
from tests.conftest import REPOSITORY, free_port, launch

REPRODUCE = REPOSITORY / "launchers" / "reproduce.py"


def measured(*accuracies: float) -> dict:
    names = ("gsm8k", "amc23", "aime24")
    return {
        "benchmarks": [
            {"benchmark": name, "accuracy": accuracy, "standard_error": 0.01}
            for name, accuracy in zip(names, accuracies, strict=True)
        ]
    }


def test_the_papers_figures_stand_beside_ours():
    by_method = {
        "before": measured(0.5, 0.1, 0.0),
        "GRPO": measured(0.7, 0.15, 0.0),
        "CAPO, C = 0.5": measured(0.75, 0.2, 0.1),
    }
    lines = reproduce.table({"qwen2.5-1.5b-gsm8k": by_method}).splitlines()
    assert lines[0] == (
        "| qwen2.5-1.5b-gsm8k | gsm8k | (paper) | amc23 | (paper) | aime24 | (paper) |"
    )
    assert lines[2].startswith("| before | 50.00 ± 1.00 | - |")
    assert lines[3].startswith("| GRPO | 70.00 ± 1.00 | 72.33 | 15.00 ± 1.00 | 15.00 |")
    assert lines[4].startswith("| CAPO, C = 0.5 | 75.00 ± 1.00 | 72.86 |")


@pytest.mark.slow
def test_smoke(tmp_path):
    port = str(free_port())
    arguments = ["--smoke", "--output", str(tmp_path), "--master_port", port, "--ranks", "2"]
    told = launch(1, REPRODUCE, *arguments, launcher="python").stdout
    assert "| GRPO |" in told and "| CAPO, C = 0.5 |" in told and "smoke test" in told
    table = json.loads((tmp_path / "table.json").read_text())
    assert list(table["smoke"]) == ["before", "GRPO", "CAPO, C = 0.5"]
    completions = [
        (tmp_path / "smoke" / name / "evaluation" / "completions.jsonl").read_text()
        for name in ("before", "grpo", "capo-0.5")
    ]
    assert len(set(completions)) == 3  # each adapter is its own
    again = launch(1, REPRODUCE, *arguments, launcher="python").stdout
    assert again.count("|") == told[told.index("| smoke |") :].count("|")  # nothing is run twice
