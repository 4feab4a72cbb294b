"""A policy by its config alone has the shapes, bytes and plan of the one that is loaded."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, MixtralConfig, Qwen3Config

from capo_ds.capacity import Capacity
from capo_ds.config import ConfigError, ModelConfig, parse_config
from capo_ds.cost.shape import Shape
from capo_ds.cost.unloaded import unloaded_policy
from capo_ds.memory import plan_memory
from capo_ds.models import load_policy
from capo_ds.quantization import entries

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 128,
}
KINDS = {
    "tied": Qwen3Config(**SMALL, tie_word_embeddings=True),
    "caps logits": Gemma2Config(**SMALL),
    "experts": MixtralConfig(**SMALL, num_local_experts=4),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("targets", [["q_proj", "o_proj"], "all-linear"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_is_planned_and_counted_as_if_loaded(kind, targets, dtype, tmp_path):
    KINDS[kind].save_pretrained(tmp_path)
    model = {"path": str(tmp_path), "lora_targets": targets, "lora_rank": 4, "dtype": dtype}
    config = parse_config({"model": model})
    alone = unloaded_policy(config.model)
    made = AutoModelForCausalLM.from_config(KINDS[kind], dtype=getattr(torch, dtype))
    made.save_pretrained(tmp_path)
    loaded = load_policy(config.model, 0)
    assert Shape.of(alone, dtype) == Shape.of(loaded, dtype)
    capacity = Capacity(10**9, 10**9)
    assert plan_memory(config, alone, 2, capacity) == plan_memory(config, loaded, 2, capacity)


def test_an_adapter_is_gone_on_from_without_its_weights(tmp_path):
    KINDS["tied"].save_pretrained(tmp_path)
    model = ModelConfig(path=str(tmp_path), lora_rank=4)
    fresh = unloaded_policy(model)
    fresh.peft_config["default"].save_pretrained(tmp_path / "adapter")
    again = model.model_copy(update={"adapter": str(tmp_path / "adapter"), "reference": "adapter"})
    found, factors = unloaded_policy(again), Shape.of(fresh, "float32").factors
    assert Shape.of(found, "float32").factors == factors
    frozen = [p.numel() for name, p in found.named_parameters() if ".reference." in name]
    assert sum(frozen) == sum(out * into for out, into in factors)


def test_four_bits_are_half_a_byte_but_for_the_output_layer(tmp_path):
    KINDS["experts"].save_pretrained(tmp_path)
    plain = unloaded_policy(ModelConfig(path=str(tmp_path), dtype="bfloat16", lora_rank=4))
    packed = unloaded_policy(
        ModelConfig(path=str(tmp_path), dtype="bfloat16", lora_rank=4, load_in_4bit=True)
    )
    bytes_of = {}
    for policy in (plain, packed):
        base = [p for p in policy.parameters() if not p.requires_grad]
        bytes_of[policy] = sum(p.numel() * p.element_size() for p in base)
    linear = 2 * 2 * (64 * 64 + 64 * 32)  # of two layers' attention; experts are no linear layers
    assert bytes_of[plain] - bytes_of[packed] == linear * 2 - linear // 2
    assert sum(map(entries, plain.parameters())) == sum(map(entries, packed.parameters()))


def test_what_cannot_be_trained_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(ConfigError, match=r"model\.path: .*an encoder with a decoder"):
        unloaded_policy(ModelConfig(path=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"model\.path: no folder"):
        unloaded_policy(ModelConfig(path=str(tmp_path / "none")))
