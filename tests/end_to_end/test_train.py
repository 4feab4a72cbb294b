"""launchers/train.py as a user runs it: two ranks, the embedded model, a few short steps."""

import json
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from capo_ds.config import BUILTIN_MODELS
from tests.conftest import REPOSITORY, launch

TRAIN = REPOSITORY / "launchers" / "train.py"
SIGNALLED = Path(__file__).with_name("signalled_train.py")
RECIPE = REPOSITORY / "launchers" / "recipes" / "capo-embedded.yaml"
SMALL = {
    "train.log_samples_every": 2,
    "rollout.prompts_per_step": 6,
    "rollout.group_size": 4,
    "rollout.max_new_tokens": 24,
    "task.train_problems": 256,
    "task.test_problems": 16,
    "train.steps": 4,
    "train.eval_every": 2,
    "train.save_every": 2,
    "objective.minibatches": 2,
    "rollout.dynamic_sampling": 1,
    "capo.radius": "auto",  # what it remembers is part of a checkpoint
}


def arguments(output: Path, **changes) -> list[str]:
    settings = SMALL | {"train.output_dir": output} | changes
    pairs = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    return ["--config", str(RECIPE), *pairs]


def metrics(folder: Path) -> list[dict]:
    """The metrics log without what a clock, or the machine's memory, decides."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {
            key: value
            for key, value in line.items()
            if not key.startswith(("time/", "memory/")) and "seconds" not in key
        }
        for line in lines
    ]


def tensorboard(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return events


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    base = AutoModelForCausalLM.from_pretrained(BUILTIN_MODELS["builtin:tiny"])
    policy = PeftModel.from_pretrained(base, folder / "adapter")
    return {name: value for name, value in policy.state_dict().items() if "lora_" in name}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[Path, str]:
    """A finished run, and what it printed."""
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    result = launch(2, TRAIN, *arguments(folder))
    return folder, result.stdout + result.stderr


@pytest.mark.slow  # test_interrupted.py has a shorter run under it
def test_the_launcher_adds_nothing(undisturbed, tmp_path):
    launch(2, TRAIN, *arguments(tmp_path / "run"), launcher="deepspeed")
    check_equal(tmp_path / "run", undisturbed[0])


def test_what_a_run_says_and_leaves_behind(undisturbed):
    folder, printed = undisturbed
    for words in ("6 prompts x 4 responses", "loss_aggregation sequence_mean", "memory per rank"):
        assert printed.count(words) == 1  # told by one rank only
    for words in ("reward ", "conflict ", "test accuracy before", "test accuracy after"):
        assert words in printed
    lines = metrics(folder)
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    assert [line["step"] for line in lines if "eval/accuracy" in line] == [0, 2, 4]
    for name in ("reward/mean", "conflict/all_before", "capo/gap", "loss/kl", "rollout/entropy"):
        assert all(name in line for line in lines[1:]), name
    assert (folder / "reward.png").read_bytes().startswith(b"\x89PNG")
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    # Every response of every second step, in order, with what the update made of it.
    assert [(s["step"], s["prompt_number"]) for s in samples] == [
        (step, prompt) for step in (1, 3) for prompt in range(6) for _ in range(4)
    ]
    for step in (1, 3):
        mine = [sample for sample in samples if sample["step"] == step]
        heard = [sample for sample in mine if sample["weight"] is not None]
        assert heard and all(sample["norm"] > 0 for sample in heard)
        line = lines[step]
        assert np.mean([s["reward"] for s in mine]) == pytest.approx(line["reward/mean"])
    assert "Train/Samples/lr" not in tensorboard(folder).Tags()["scalars"]
    events = tensorboard(folder)
    rewards = [event.value for event in events.Scalars("reward/mean")]
    assert rewards == pytest.approx([line["reward/mean"] for line in lines[1:]])
    assert max(line["rollout/groups_replaced"] for line in lines[1:]) > 0
    tags = events.Tags()
    assert {"memory/resident_bytes", "time/rollout", "comm/reduce_bytes"} <= set(tags["scalars"])
    assert {"rollout/samples/text_summary", "custom_scalars__config__"} <= set(tags["tensors"])
    assert (folder / "starts.jsonl").exists()


def test_every_metric_stands_in_the_docs(undisturbed):
    told = told_metrics()
    names = {name for line in metrics(undisturbed[0]) for name in line} - {"step"}
    assert len(names) > 60 and not [name for name in names if not told.fullmatch(name)]


def told_metrics() -> re.Pattern[str]:
    """The names in docs/metrics.md."""
    page = (REPOSITORY / "docs" / "metrics.md").read_text()
    cells = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    return re.compile("|".join(map(pattern_of, re.findall("`(.*?)`", " ".join(cells)))))


def pattern_of(told: str) -> str:
    """{a,b} is one of them, * anything, words in capitals a name."""
    escaped = re.sub(r"\*", ".+", told)
    escaped = re.sub(r"{(.*?)}", lambda found: f"({found[1].replace(',', '|')})", escaped)
    return re.sub(r"[A-Z]+\b", "[^/]+", escaped)


def test_a_dry_run_foretells_the_communication_and_writes_nothing(undisturbed, tmp_path):
    idle = ["--set", "cagrad.radius=0.3"]
    result = launch(2, TRAIN, *arguments(tmp_path / "run"), *idle, "--dry-run")
    warning = "warning: settings without effect here: cagrad.radius (aggregator: capo)\n"
    assert (result.stdout + result.stderr).count(warning) == 1
    for words in ("prompts_per_step: 6", "1: ", "local rank 1", "3 prompts = 12 samples"):
        assert words in result.stdout
    assert "memory per rank, estimated" in result.stdout
    assert not (tmp_path / "run").exists()
    told = sent_by_phase(result.stdout)
    for line in metrics(undisturbed[0])[1:]:  # means over 2 ranks and 2 updates
        # 8 bytes of the norm and some notes beside the factors.
        assert told["optimizer"] == pytest.approx(2 * line["comm/optimizer_bytes"], rel=0.01)
        # Of 3 prompts in an update the busier rank has 2 or all 3, the mean is 1.5; rank 0 sends
        # nothing to be reduced.
        columns = 2 * line["comm/all_to_all_bytes"]
        reduced = 2 * 2 * line["comm/reduce_bytes"]
        assert 0.99 * columns * 2 / 1.5 < told["gram"] - reduced < columns * 3 / 1.5


def sent_by_phase(told: str) -> dict[str, float]:
    """Bytes, as a dry run tells them."""
    lines = told.partition("sent by a rank in a step, at most: ")[2].splitlines()[1:]
    assert all(line.split()[1] == "MiB" for line in lines)
    return {line.split()[2]: float(line.split()[0]) * 2**20 for line in lines}


def test_the_adapter_loads_with_peft_and_changes_the_model(undisturbed):
    folder, _ = undisturbed
    weights = adapter(folder)
    assert any(value.abs().max() > 0 for name, value in weights.items() if "lora_B" in name)
    tokenizer = AutoTokenizer.from_pretrained(folder / "adapter")
    ids = tokenizer("Tom has 3 apples.", return_tensors="pt").input_ids
    base = AutoModelForCausalLM.from_pretrained(BUILTIN_MODELS["builtin:tiny"])
    before = base(ids).logits
    after = PeftModel.from_pretrained(base, folder / "adapter")(ids).logits
    assert not torch.allclose(before, after)


def check_equal(folder: Path, whole: Path) -> None:
    assert metrics(folder) == metrics(whole)
    shown = [event.step for event in tensorboard(folder).Scalars("reward/mean")]
    assert shown == [line["step"] for line in metrics(whole) if "reward/mean" in line]
    expected = adapter(whole)
    for name, value in adapter(folder).items():
        assert torch.equal(value, expected[name]), name


def test_killed_terminated_and_resumed_equals_undisturbed(undisturbed, tmp_path):
    """Both ranks, killed in the last update of the last step; then terminated, as srun does it, in
    the first update of a step after which no checkpoint is due."""
    whole, _ = undisturbed
    folder = tmp_path / "run"
    launch(2, SIGNALLED, "SIGKILL", "8", *arguments(folder), status=-signal.SIGKILL)
    assert [line["step"] for line in metrics(folder)] == [0, 1, 2, 3]
    assert not (folder / "adapter").exists()
    told = launch(2, SIGNALLED, "SIGTERM", "1", *arguments(folder)).stdout
    assert "interrupted after step 3" in told
    assert [line["step"] for line in metrics(folder)] == [0, 1, 2, 3]
    assert (folder / "checkpoints" / "step000003").is_dir()
    launch(2, TRAIN, *arguments(folder))
    check_equal(folder, whole)


@pytest.mark.parametrize("ends", [(2,), pytest.param((2, 4), marks=pytest.mark.slow)])
def test_zero_3_learns_what_zero_2_learns(undisturbed, tmp_path, ends):
    """With every weight partitioned; the slow run goes on from one that has ended before."""
    whole, _ = undisturbed
    zero3 = {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}
    (tmp_path / "zero3.json").write_text(json.dumps(zero3))
    for steps in ends:
        changes = {"deepspeed": tmp_path / "zero3.json", "train.steps": steps}
        launch(2, TRAIN, *arguments(tmp_path / "run", **changes))
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(ends[-1] + 1))
    for ours, expected in zip(lines, metrics(whole), strict=False):
        assert ours.keys() == expected.keys()
        for name in ("reward/mean", "rollout/length", "eval/accuracy"):
            assert ours.get(name) == expected.get(name), name
        for name in {"loss/kl", "loss/grad_norm", "conflict/all_before"} & ours.keys():
            assert ours[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-6), name
    expected = adapter(whole / "checkpoints" / f"step{ends[-1]:06d}")
    for name, value in adapter(tmp_path / "run").items():
        # ZeRO 2 reads prompts once, ZeRO 3 with each response: they round differently, and Adam
        # makes a whole step of an entry whose gradient is but rounding.
        far = (value - expected[name]).abs() > 1e-4
        assert far.double().mean() < 1e-3, name


def test_samples_do_not_depend_on_the_number_of_ranks(undisturbed, tmp_path):
    whole, _ = undisturbed
    launch(1, TRAIN, *arguments(tmp_path / "one", **{"train.steps": 1}))
    one, two = metrics(tmp_path / "one")[1], metrics(whole)[1]
    for name in ("reward/mean", "rollout/length", "rollout/entropy"):
        assert one[name] == pytest.approx(two[name], rel=1e-5), name
    for name in ("loss/kl", "loss/ratio", "loss/grad_norm", "conflict/all_before"):  # 2nd update
        assert one[name] == pytest.approx(two[name], rel=1e-3), name


def test_a_folder_with_a_run_is_not_overwritten(undisturbed):
    folder, _ = undisturbed
    before = (folder / "metrics.jsonl").read_text()
    result = launch(1, TRAIN, *arguments(folder, **{"train.resume": "never"}), status=2)
    assert "train.output_dir" in result.stderr and "resume=auto" in result.stderr
    assert (folder / "metrics.jsonl").read_text() == before


def test_a_finished_run_says_so(undisturbed):
    folder, _ = undisturbed
    before = (folder / "metrics.jsonl").read_text()
    result = launch(1, TRAIN, *arguments(folder))  # any number of ranks sees it
    assert "is finished" in result.stdout and "raise train.steps" in result.stdout
    assert (folder / "metrics.jsonl").read_text() == before


def test_a_run_is_not_continued_with_other_settings(undisturbed):
    folder, _ = undisturbed
    changes = {"aggregator": "mean", "train.seed": 9, "train.steps": 6, "model.lora_rank": 4}
    result = launch(2, TRAIN, *arguments(folder, **changes), status=2)
    told = result.stdout + result.stderr
    assert told.count("aggregator: 'capo' in the checkpoint, 'mean' now") == 1
    assert told.count("train.seed: 0 in the checkpoint, 9 now") == 1
    assert told.count("model.lora_rank: 32 in the checkpoint, 4 now") == 1
    assert "train.steps:" not in told


def test_bfloat16_checkpointing_and_a_rank_without_prompts(tmp_path):
    changes = {
        "model.dtype": "bfloat16",
        "model.gradient_checkpointing": True,
        "rollout.prompts_per_step": 1,
        "objective.minibatches": 1,
        "capo.radius": 0.5,
        "capo.region": "norm",
        "train.steps": 2,
        "train.eval_every": 0,
        "train.save_every": 0,
    }
    launch(2, TRAIN, *arguments(tmp_path / "run", **changes))
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2]
    assert all(line["loss/grad_norm"] > 0 for line in lines)
    assert (tmp_path / "run" / "checkpoints" / "step000002" / "adapter").exists()


def test_a_bad_config_is_told_once_before_anything_starts(tmp_path):
    bad = arguments(tmp_path / "bad", **{"capo.raduis": 1})
    result = launch(2, TRAIN, *bad, status=2)
    told = result.stdout + result.stderr
    assert told.count("did you mean capo.radius?") == 1
    assert "Traceback" not in told
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize("launcher", ["forked", pytest.param("mpirun", marks=pytest.mark.slow)])
def test_plain_grpo_trains_without_per_sample_gradients(tmp_path, launcher):
    changes = {"aggregator": "mean", "measure_conflict": False, "train.steps": 2}
    launch(2, TRAIN, *arguments(tmp_path / "run", **changes), launcher=launcher)
    lines = metrics(tmp_path / "run")
    assert len(lines) == 3
    assert "conflict/all_before" not in lines[-1]


@pytest.mark.slow
def test_the_quickstart_gains_fifteen_points(tmp_path):
    launch(2, TRAIN, "--config", "builtin:quickstart", f"--set=train.output_dir={tmp_path / 'run'}")
    lines = metrics(tmp_path / "run")
    accuracy = [line["eval/accuracy"] for line in lines if "eval/accuracy" in line]
    assert 0.25 <= accuracy[0] <= 0.55
    assert accuracy[-1] - accuracy[0] >= 0.15
