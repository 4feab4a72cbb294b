import json
import math
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from capo_ds import warmup
from capo_ds.config import BUILTIN_MODELS, ConfigError, parse_config
from capo_ds.distributed import supervised
from capo_ds.distributed.supervised import BETAS, SupervisedEngine
from capo_ds.models import load_tokenizer
from capo_ds.tasks import Problem
from capo_ds.warmup_folder import CHECKPOINTS, STATE_FILE

TINY = str(BUILTIN_MODELS["builtin:tiny"])
pytestmark = pytest.mark.usefixtures("process_group")


def config(folder, **warm_up):
    return parse_config(
        {
            "task": {"train_problems": 64, "test_problems": 8, "levels": [1, 4]},
            "train": {"micro_batch_size": 3},
            "deepspeed": "ds_configs/zero0.json",
            "warmup": {"output_dir": str(folder), "batch_size": 8, "max_steps": 2} | warm_up,
        }
    )


@pytest.fixture(scope="module")
def demonstrations():
    return warmup.encode(config("unused"), load_tokenizer(TINY))


def test_loss_is_on_the_completion_and_its_end_only(demonstrations):
    tokenizer = load_tokenizer(TINY)
    inputs, labels = warmup.collate(demonstrations[:5], tokenizer.pad_token_id)
    for demonstration, row, targets in zip(demonstrations[:5], inputs, labels, strict=True):
        assert row[: len(demonstration)].tolist() == demonstration.prompt + demonstration.completion
        assert set(row[len(demonstration) :].tolist()) <= {tokenizer.pad_token_id}
        assert targets[targets != warmup.IGNORED].tolist() == demonstration.completion
        assert (targets[: len(demonstration.prompt)] == warmup.IGNORED).all()
        assert demonstration.completion[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(demonstration.completion[:-1]).endswith("}")


def test_a_micro_batch_without_sequences_has_no_loss_but_a_gradient():
    model = AutoModelForCausalLM.from_pretrained(TINY)
    loss = warmup.summed_loss(model, *warmup.collate([], 1))
    loss.backward()
    assert loss.item() == 0
    assert all(parameter.grad.abs().sum() == 0 for parameter in model.parameters())


@pytest.mark.parametrize("parts", [1, 3, 7, 60])
def test_split_by_length_keeps_all(demonstrations, parts):
    chunks = warmup.split_by_length(demonstrations[:50], parts)
    assert len(chunks) == parts
    assert sorted(id(item) for chunk in chunks for item in chunk) == sorted(
        map(id, demonstrations[:50])
    )
    lengths = [len(demonstration) for chunk in chunks for demonstration in chunk]
    assert lengths == sorted(lengths)


def test_every_epoch_sees_each_demonstration_once_in_a_new_order(demonstrations):
    batches = warmup.shuffled_batches(demonstrations[:30], size=10, seed=0)
    epochs = [[id(item) for _ in range(3) for item in next(batches)] for _ in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(map(id, demonstrations[:30]))
    assert epochs[0] != epochs[1]


def test_learning_rate_rises_then_falls_to_its_floor():
    rates = [warmup.learning_rate_at(step, 100) for step in range(101)]
    assert rates[:5] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[100] == pytest.approx(warmup.FINAL_RATE)


@pytest.mark.parametrize("micro_batch_size", [1, 3, 8])
def test_a_step_takes_the_gradient_of_the_mean_token_loss(
    demonstrations, micro_batch_size, monkeypatch
):
    monkeypatch.setattr(supervised, "MAX_GRADIENT_NORM", 0.0)  # clipping would hide the scale
    batch = demonstrations[:8]
    model = AutoModelForCausalLM.from_pretrained(TINY)
    engine = SupervisedEngine(
        model, "ds_configs/zero0.json", micro_batch_size, math.ceil(8 / micro_batch_size)
    )
    loss = warmup.train_step(engine, batch, 1, learning_rate=1e-3)

    expected = AutoModelForCausalLM.from_pretrained(TINY)
    inputs, labels = warmup.collate(batch, 1)
    reference = expected(input_ids=inputs, labels=labels).loss
    reference.backward()

    assert loss == pytest.approx(reference.item(), rel=1e-5)
    for parameter, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        # Adam's first moment after one step is the gradient times 1 - beta_1.
        moment = engine.optimizer.state[parameter]["exp_avg"]
        torch.testing.assert_close(moment / (1 - BETAS[0]), theirs.grad, rtol=1e-4, atol=1e-6)


def test_a_step_moves_the_weights_by_the_learning_rate(demonstrations):
    model = AutoModelForCausalLM.from_pretrained(TINY)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    engine = SupervisedEngine(model, "ds_configs/zero0.json", 8, 1)
    warmup.train_step(engine, demonstrations[:8], 1, learning_rate=1e-4)
    moves = [
        (new - old).detach().abs() for new, old in zip(model.parameters(), before, strict=True)
    ]
    # Adam's first step is the learning rate in every coordinate with a gradient.
    assert torch.cat([move.flatten() for move in moves]).median() == pytest.approx(1e-4, rel=0.05)


def test_the_same_seed_gives_the_same_model_and_it_loads(tmp_path):
    first, again, other = (
        weights_after(tmp_path / name, seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "a")) == len(load_tokenizer(TINY))


def weights_after(folder, seed):
    outcome = warmup.run(config(folder, seed=seed, stop_accuracy=1.0))
    assert (outcome.steps, outcome.reached) == (2, False)
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


@pytest.mark.parametrize(
    ("stop_accuracy", "outcome"),
    [(0.5, warmup.Outcome(4, 0.5, reached=True)), (0.9, warmup.Outcome(7, 0.7, reached=False))],
)
def test_stops_at_the_first_evaluation_that_reaches_the_accuracy(
    monkeypatch, stop_accuracy, outcome
):
    monkeypatch.setattr(warmup, "train_step", lambda *arguments: 0.0)
    settings = config("unused", stop_accuracy=stop_accuracy, eval_every=2, max_steps=7).warmup
    accuracies = iter([0.1, 0.5, 0.6, 0.7])  # after steps 2, 4, 6 and the last
    batches = iter([[]] * 7)
    assert warmup.train(None, batches, 1, settings, lambda: next(accuracies)) == outcome


def test_interrupted_and_resumed_ends_as_undisturbed(tmp_path, monkeypatch):
    steps = {"max_steps": 4, "eval_every": 4, "stop_accuracy": 1.0}
    warmup.run(config(tmp_path / "whole", **steps))
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole").state_dict()

    stopped = tmp_path / "stopped"
    ends_after = iter([0, 0, 1])
    with monkeypatch.context() as patch:
        patch.setattr(warmup.Progress, "interrupted", property(lambda self: next(ends_after)))
        outcome = warmup.run(config(stopped, save_every=1, **steps))
    assert (outcome.steps, outcome.finished) == (3, False)
    assert [p.name for p in (stopped / CHECKPOINTS).glob("step*")] == ["step000003"]
    assert not (stopped / "model.safetensors").exists()
    with pytest.raises(ConfigError, match=r"unfinished warm-up, at step 3; set warmup.resume"):
        warmup.run(config(stopped, **steps))
    with pytest.raises(ConfigError, match=r"warmup.seed: 0 in the checkpoint, 1 now"):
        warmup.run(config(stopped, resume="auto", seed=1, **steps))
    state = json.loads((stopped / CHECKPOINTS / STATE_FILE).read_text())
    del state["settings"]["warmup.seed"]  # as of a version that had no such key
    (stopped / CHECKPOINTS / STATE_FILE).write_text(json.dumps(state))
    with pytest.raises(ConfigError, match=r"warmup.seed: 0 in the checkpoint, 1 now"):
        warmup.run(config(stopped, resume="auto", seed=1, **steps))
    outcome = warmup.run(config(stopped, resume="auto", **steps))
    assert (outcome.steps, outcome.finished) == (4, True)
    again = AutoModelForCausalLM.from_pretrained(stopped).state_dict()
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    assert not (stopped / CHECKPOINTS).exists()


def test_a_model_that_could_not_be_saved_is_refused_before_any_step(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder)
    told = json.loads((folder / "generation_config.json").read_text())
    told |= {"temperature": 0.7, "do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(told))
    monkeypatch.setattr(warmup, "train", lambda *_: pytest.fail("trained"))
    settings = config(tmp_path / "run").model_dump() | {"model": {"path": str(folder)}}
    with pytest.raises(ConfigError, match=r"model.path: .*generation_config.json.*temperature"):
        warmup.run(parse_config(settings))


def test_a_folder_without_weights_starts_from_random_ones(tmp_path):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).symlink_to(f"{TINY}/{name}")
    first, again, other = (
        warmup.load_model(parse_config({"model": {"path": str(tmp_path)}}).model, seed)
        for seed in (0, 0, 1)
    )
    assert torch.equal(first.lm_head.weight, again.lm_head.weight)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": {"path": "no/such/model"}}, "model.path: .*'no/such/model'"),
        ({"warmup": {"batch_size": 65}}, "warmup.batch_size: 65 is more than the 64 demonstr"),
        ({"rollout": {"max_new_tokens": 5}}, "warmup.batch_size: 64 is more than the 0 demonstr"),
        ({"warmup": {"styles": {"plain": 0.0}}}, "warmup.styles: shares of demonstration styles"),
    ],
)
def test_bad_input_is_told(settings, message):
    settings = {"task": {"train_problems": 64}} | settings
    with pytest.raises(ConfigError, match=message):
        warmup.run(parse_config(settings))


def test_a_task_without_solutions_is_refused(monkeypatch):
    monkeypatch.setattr(warmup, "load_problems", lambda config, split: [Problem("?", "1")] * 9)
    with pytest.raises(ConfigError, match="'arithmetic' has no worked solutions"):
        warmup.encode(config("unused"), load_tokenizer(TINY))
