"""What the recorder leaves in the run's folder and in TensorBoard."""

import json
import math
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.util.tensor_util import make_ndarray
from torch.utils.tensorboard import SummaryWriter

from capo_ds.capacity import used_memory
from capo_ds.config import Config, load_config
from capo_ds.telemetry import provenance
from capo_ds.telemetry.metrics import CONFIG_FILE, STARTS_FILE, Recorder, read_metrics

SETTINGS = Config().model_dump(mode="json")


def response(step: int, number: int = 0, **changes) -> dict:
    """A line of the samples log."""
    return {
        "step": step,
        "prompt_number": number,
        "source": "arithmetic",
        "prompt": "2 + 2?",
        "completion": f"step {step}",
        "answer": "4",
        "verdict": "right",
        "length": 3,
        "truncated": False,
        "reward": 1.0,
        "rewards": {"rule": 1.0},
        "advantage": 0.5,
        "norm": 1.0,
        "cosine_before": 0.1,
        "cosine_after": 0.2,
        "xi": None,
        "weight": 1.0,
    } | changes


def record(folder: Path, first_line: int, steps: range) -> None:
    """What one process of a run records, with one writer."""
    writer = SummaryWriter(folder / "tensorboard")
    writers = SimpleNamespace(
        tensorboard=writer,
        wandb=False,
        comet=None,
        cut_csv=lambda step: None,
        scalars=lambda step, values: [writer.add_scalar(*item, step) for item in values.items()],
    )
    recorder = Recorder(folder, writers, first_line)
    recorder.settings(SETTINGS)
    for step in steps:
        recorder.scalars(step, {"reward/mean": step + first_line / 100})
        recorder.samples(step, [response(step)])
    writer.close()


def events(folder: Path) -> EventAccumulator:
    """What TensorBoard shows; scalars are tensors to it."""
    accumulator = EventAccumulator(str(folder / "tensorboard"))
    accumulator.Reload()
    return accumulator


@pytest.mark.parametrize("first_line", [0, 3])
def test_a_resumed_run_shows_each_step_once(tmp_path, first_line):
    record(tmp_path, 0, range(6))
    record(tmp_path, first_line, range(first_line, 5))
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    shown = events(tmp_path)
    points = [(e.step, make_ndarray(e.tensor_proto)) for e in shown.Tensors("reward/mean")]
    assert points == [(line["step"], pytest.approx(line["reward/mean"])) for line in lines]
    assert [e.step for e in shown.Tensors("rollout/samples/text_summary")] == [0, 1, 2, 3, 4]


def test_the_logs_are_json_whatever_is_measured(tmp_path):
    """Of rewards near 1e308 the sum is infinite, and of infinite norms the mean of cosines NaN."""
    writers = SimpleNamespace(
        tensorboard=None,
        wandb=False,
        comet=None,
        cut_csv=lambda step: None,
        scalars=lambda step, values: None,
    )
    recorder = Recorder(tmp_path, writers, 0)
    odd = {"reward/mean": math.inf, "loss/grad_norm": -math.inf, "loss/kl": math.nan}
    recorder.scalars(1, odd | {"reward/accuracy": 0.5})
    recorder.samples(1, [response(1) | {"norm": math.inf, "rewards": {"own": math.nan}}])

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    lines = [
        json.loads((tmp_path / name).read_text(), parse_constant=refuse)
        for name in ("metrics.jsonl", "samples.jsonl")
    ]
    assert lines[0] == {"step": 1} | dict.fromkeys(odd) | {"reward/accuracy": 0.5}
    assert lines[1]["norm"] is None and lines[1]["rewards"] == {"own": None}
    (read,) = read_metrics(tmp_path)
    assert all(math.isnan(read[name]) for name in odd) and read["reward/accuracy"] == 0.5


def test_hyperparameters_commit_and_every_start_are_recorded(tmp_path):
    record(tmp_path, 0, range(2))
    record(tmp_path, 1, range(1, 3))
    assert load_config(tmp_path / CONFIG_FILE) == Config()
    starts = [json.loads(line) for line in (tmp_path / STARTS_FILE).read_text().splitlines()]
    assert [start["first_line"] for start in starts] == [0, 1]
    assert starts[0]["torch"].startswith(torch.__version__.partition("+")[0])
    metadata = events(tmp_path).SummaryMetadata("_hparams_/session_start_info")
    session = HParamsPluginData.FromString(metadata.plugin_data.content).session_start_info
    assert session.hparams["capo.radius"].number_value == 0.5
    assert session.hparams["aggregator"].string_value == "capo"
    assert session.hparams["torch"].string_value == starts[0]["torch"]
    assert session.hparams["commit"].string_value == str(starts[0]["commit"])


def test_the_first_custom_scalars_are_those_of_conflict(tmp_path):
    record(tmp_path, 0, range(1))
    (tensor,) = events(tmp_path).Tensors("custom_scalars__config__")
    layout = Layout.FromString(tensor.tensor_proto.string_val[0])
    assert layout.category[0].title.startswith("Conflict")
    tags = list(layout.category[0].chart[0].multiline.tag)
    assert tags == ["conflict/all_before", "conflict/all_after"]


def test_the_commit_is_that_of_the_repository(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "REPOSITORY", tmp_path)
    assert provenance.provenance()["commit"] is None
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        (tmp_path / "file").write_text("1")
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    commit = provenance.provenance()["commit"]
    assert len(commit) == 40
    (tmp_path / "file").write_text("2")
    assert provenance.provenance()["commit"] == f"{commit}-dirty"


def test_memory_on_cpu_is_the_resident_set():
    held = torch.ones(2**25)  # 128 MiB
    name, count = used_memory(torch.device("cpu"))
    assert name == "memory/resident_bytes" and count > held.nbytes
    del held
    assert used_memory(torch.device("cpu"))[1] < count - 2**26
