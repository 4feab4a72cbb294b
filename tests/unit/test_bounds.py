"""In bfloat16 no sound model is refused, however large its logits; an unsound one is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.tiny_models import MODELS
from capo_ds.config import Config, ConfigError, parse_config
from capo_ds.models import load_policy
from capo_ds.rehearsal import rehearse
from capo_ds.rollout.hf import HuggingFaceSampler
from capo_ds.rollout.probe import Probe, SamplerMismatch

FAMILIES = ["llama", "qwen2", "qwen3", "gemma", "phi3", "mixtral"]
HEAD_SCALES = [1.0, 16.0]  # logits of about 4 and 64
WIDER = {
    "vocab_size": 1024,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "tie_word_embeddings": False,
}
CONTEXT = 128
PROMPTS = [list(range(5, 45)), list(range(100, 152))]
pytestmark = pytest.mark.usefixtures("process_group")


@dataclass
class Loaded:
    """One model's weights in bfloat16: as a run has it, and computed in float32 as a sampler of
    other rounding; `scaled` sets both output layers to some times what they were."""

    config: Config
    policy: PeftModel
    exact: PeftModel
    heads: list[torch.Tensor] = field(default_factory=list)

    def scaled(self, by: float) -> None:
        for model, head in zip((self.policy, self.exact), self.heads, strict=True):
            with torch.no_grad():
                model.get_output_embeddings().weight.copy_(head * by)


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(request, process_group, tmp_path_factory) -> Loaded:
    folder = tmp_path_factory.mktemp(request.param)
    save_wide(request.param, folder)
    config, policy = load(folder, "bfloat16")
    _, exact = load(folder, "float32")
    heads = [m.get_output_embeddings().weight.detach().clone() for m in (policy, exact)]
    return Loaded(config, policy, exact, heads)


def save_wide(name: str, folder: Path) -> None:
    """Random weights at which every layer's output is as large as its input."""
    torch.manual_seed(0)
    tiny = MODELS[name]
    own = {"head_dim": 16} if "head_dim" in tiny.settings else {}
    given = {k: v for k, v in tiny.settings.items() if k != "rope_parameters"} | WIDER | own
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **given))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
    model.bfloat16().save_pretrained(folder)


def load(folder: Path, dtype: str) -> tuple[Config, PeftModel]:
    model = {"path": str(folder), "dtype": dtype, "lora_rank": 4, "lora_targets": "all-linear"}
    config = parse_config({"model": model, "rollout": {"group_size": 4}})
    return config, load_policy(config.model, seed=0)


def sampler_of(policy: PeftModel) -> HuggingFaceSampler:
    return HuggingFaceSampler(policy, ends=(), pad=0, max_new_tokens=8, batch_size=8)


@pytest.mark.parametrize("by", HEAD_SCALES)
def test_sound_models_are_not_refused(loaded, by):
    loaded.scaled(by)
    found = rehearse(loaded.config, loaded.policy, PROMPTS)
    assert found.largest_logit > 2.5 * by  # the scale is felt
    for policy in (loaded.policy, loaded.exact):
        Probe(sampler_of(policy), loaded.policy, PROMPTS, CONTEXT, loaded.config).check()


@contextmanager
def outputs_changed(policy: PeftModel, change: Callable[[torch.Tensor], torch.Tensor]):
    """Inside, what every attention layer gives is changed."""
    layers = policy.get_base_model().get_decoder().layers
    hooks = [
        layer.self_attn.o_proj.register_forward_hook(lambda _, __, output: change(output))
        for layer in layers
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("by", HEAD_SCALES)
def test_rows_that_feel_their_neighbours_are_refused(loaded, by):
    loaded.scaled(by)
    told = r"depends? on the rows beside it|decoding with its cache"
    with (
        outputs_changed(loaded.policy, lambda output: output.mean(0, True).expand_as(output)),
        pytest.raises(ConfigError, match=told),
    ):
        rehearse(loaded.config, loaded.policy, PROMPTS)


@pytest.mark.parametrize("by", HEAD_SCALES)
def test_noise_in_a_pass_is_refused(loaded, by):
    loaded.scaled(by)
    with (
        outputs_changed(loaded.policy, lambda output: output + torch.randn_like(output) / 4),
        pytest.raises(ConfigError, match="draws random numbers"),
    ):
        rehearse(loaded.config, loaded.policy, PROMPTS)


@pytest.mark.parametrize("by", HEAD_SCALES)
def test_a_sampler_of_other_weights_is_refused(loaded, by):
    loaded.scaled(by)
    sampler = sampler_of(loaded.exact)
    probe = Probe(sampler, loaded.policy, PROMPTS, CONTEXT, loaded.config)
    with (
        outputs_changed(loaded.exact, torch.neg),
        pytest.raises(SamplerMismatch, match="neither the new nor the old"),
    ):
        probe.check()
