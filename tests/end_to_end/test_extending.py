"""Two ranks train with a part of each kind of the user's: the files of docs/extending.md."""

import json

import pytest
import yaml

from tests.conftest import REPOSITORY, launch
from tests.extending import sections, write

pytestmark = pytest.mark.slow

SMALL = {
    "model": {"lora_rank": 4},
    "rollout": {"prompts_per_step": 6, "group_size": 4, "max_new_tokens": 24},
    "task": {},
    "objective": {"scale_advantages": "batch"},
    "gradients": {},
    "train": {"steps": 2, "eval_every": 2, "save_every": 0, "log_samples_every": 1},
    "optimizer": {"learning_rate": 1e-3},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    write(folder)
    settings = dict(SMALL)
    for kind, (_, _, told) in sections().items():
        for key, value in told.items():
            if kind == "verdict":  # in the mixture each data set has its own
                continue
            settings[key] = settings.get(key, {}) | value if isinstance(value, dict) else value
    loose = {"name": "arithmetic", "label": "loose", "verdict": "last_number.py:last_number"}
    settings["evaluation"] = {"benchmarks": [{"name": "arithmetic"}, loose], "limit": 12}
    settings["train"]["output_dir"] = str(folder / "run")
    text = yaml.safe_dump(settings)
    for name, _, _ in sections().values():
        text = text.replace(f"{name}:", f"{folder / name}:")
    (folder / "config.yaml").write_text(text)
    launch(2, REPOSITORY / "launchers" / "train.py", "--config", folder / "config.yaml")
    return folder / "run"


def read(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_each_part_had_its_say(run):
    samples, metrics = read(run / "samples.jsonl"), read(run / "metrics.jsonl")
    assert {sample["source"] for sample in samples} == {"sums", "sorting"}
    zero = [sample for sample in samples if sample["weight"] == 0]
    assert zero  # whom the trimmed mean left out
    for sample in samples:
        assert set(sample["rewards"]) >= {"rule"} and len(sample["rewards"]) == 2
        if sample["source"] == "sorting" and sample["verdict"] == "unformatted":
            assert sample["rewards"]["rule"] == -1.0
    step = metrics[-1]
    assert any(key.startswith("reward/") and "sorting" in key for key in step)
    assert any(key.startswith("trimmed.py_trimmed/") for key in step)
    assert step["eval/loose/accuracy"] >= step["eval/accuracy"]
    lengths = [
        length for file in run.glob("tokens.*.jsonl") for row in read(file) for length in row
    ]
    assert len(list(run.glob("tokens.*.jsonl"))) == 2
    assert len(lengths) >= len(samples)


def test_the_steps_advantages_share_one_scale(run):
    """Over both ranks, less the group's mean: deviation 1."""
    for step in (0, 1):
        values = [s["advantage"] for s in read(run / "samples.jsonl")][24 * step : 24 * step + 24]
        mean = sum(values) / 24
        assert abs(mean) < 1e-6
        assert abs(sum(value**2 for value in values) / 23 - 1) < 1e-4


BROKEN = {  # a line of each file, in the place of which the file fails
    "aggregator": "    return problem.average *",
    "objective": "    ratio = tokens.log_ratio",
    "sampler": "        rollout = self.inner.sample",
    "sketch": "        rows = gradients.flatten",
    "task": "            digits = [str(draw",
    "verdict": "    found = [re.findall",
    "reward": "    return [\n        -per_character",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_an_error_in_a_part_is_told_once_with_its_place(tmp_path, kind):
    name, content, told = sections()[kind]
    before, line, after = content.partition(BROKEN[kind])
    indent = line[: len(line) - len(line.lstrip())]
    assert line, "the page has changed"
    (tmp_path / name).write_text(f"{before}{indent}made_up()\n{line}{after}")
    settings = dict(SMALL)
    for key, value in told.items():
        settings[key] = settings.get(key, {}) | value if isinstance(value, dict) else value
    settings["train"] = SMALL["train"] | {"eval_every": 0, "output_dir": str(tmp_path / "run")}
    text = yaml.safe_dump(settings).replace(f"{name}:", f"{tmp_path / name}:")
    (tmp_path / "config.yaml").write_text(text)
    train = REPOSITORY / "launchers" / "train.py"
    result = launch(2, train, "--config", tmp_path / "config.yaml", status=None)
    number = before.count("\n") + 1
    assert result.returncode == (2 if kind == "task" else 1)
    assert result.stderr.count(f'File "{tmp_path / name}", line {number}, in ') == 1, result.stderr
    assert result.stderr.count("name 'made_up' is not defined") == 1
    assert "Traceback" not in result.stderr and "capo_ds/" not in result.stderr
