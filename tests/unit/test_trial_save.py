"""What a run will save is saved at its start; the run's own ranks are in tests/distributed."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from capo_ds.config import Config, ConfigError, ModelConfig
from capo_ds.distributed import checkpoint
from capo_ds.models import load_policy, load_tokenizer
from capo_ds.trial_save import rehearse_saving

pytestmark = pytest.mark.usefixtures("process_group")


@pytest.fixture
def engine(random_model):
    policy = load_policy(ModelConfig(path=random_model, lora_rank=2), seed=0)
    factors = {n: p.detach() for n, p in policy.named_parameters() if p.requires_grad}
    moments = {f"{name}.exp_avg": torch.zeros_like(factor) for name, factor in factors.items()}
    return SimpleNamespace(
        module=policy,
        parameters=list(factors.values()),
        state=lambda: (factors | moments, {"steps": 0, "schedule": 0}),
        save_adapter=policy.save_pretrained,
        whole=lambda *_, **__: nullcontext(),
    )


def test_a_trial_leaves_nothing(engine, tmp_path):
    rehearse_saving(tmp_path, engine, load_tokenizer("builtin:tiny"), Config())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["moments", "tokenizer", "checkpoint", "adapter"])
def test_what_cannot_be_saved_is_told_at_once(what, engine, tmp_path, monkeypatch):
    tokenizer = load_tokenizer("builtin:tiny")

    def full(*_, **__):
        raise OSError("No space left on device")

    if what == "moments":
        engine.state = full
    elif what == "tokenizer":
        monkeypatch.setattr(type(tokenizer), "save_pretrained", full)
    elif what == "checkpoint":
        monkeypatch.setattr(checkpoint, "save_file", full)
    else:  # files that are not read as they were written
        save = engine.save_adapter
        wrong = {n: t + 1 for n, t in engine.state()[0].items() if "lora_B" in n}
        engine.save_adapter = lambda place: save(place, state_dict=wrong)
    with pytest.raises(ConfigError, match=r"train\.output_dir: .*rehearsal") as raised:
        rehearse_saving(tmp_path, engine, tokenizer, Config())
    assert what == "adapter" or "No space left" in str(raised.value)
    assert list(tmp_path.iterdir()) == []
