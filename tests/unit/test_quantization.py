"""Checkpoints of fewer bits: what is read right, what trains, what is refused in which words."""

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from benchmarks.tiny_models import PROMPTS, TEXT, settings
from capo_ds.config import ConfigError, ModelConfig, parse_config
from capo_ds.merging import merge
from capo_ds.models import load_base_model, load_policy
from capo_ds.quantization import base_precision, dequantised, entries
from capo_ds.rehearsal import rehearse
from tests.unit.test_architectures import trained_adapter

SIZES = {"hidden_size": 64, "intermediate_size": 128, "initializer_range": 0.2}
BITSANDBYTES = pytest.mark.skipif(not find_spec("bitsandbytes"), reason="needs bitsandbytes")
COMPRESSED = pytest.mark.skipif(not find_spec("compressed_tensors"), reason="not installed")
pytestmark = pytest.mark.usefixtures("process_group")


def llama(folder: Path) -> Path:
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**TEXT | SIZES)).save_pretrained(folder)
    return folder / "model.safetensors"


def mark(folder: Path, quantization: dict) -> None:
    file = folder / "config.json"
    told = {"quantization_config": quantization}
    file.write_text(json.dumps(json.loads(file.read_text()) | told))


def change_weights(file: Path, change) -> dict[str, torch.Tensor]:
    """Each projection's weight by what `change` stores for it; the weights that are then meant."""
    stored, meant = {}, {}
    for name, weight in load_file(file).items():
        parts, meant[name] = change(name, weight) if "proj" in name else ({name: weight}, weight)
        stored |= parts
    save_file(stored, file, {"format": "pt"})
    return meant


def in_blocks(name: str, weight: torch.Tensor):
    """FP8 with a scale for every 16 x 16 entries."""
    blocks = weight.unflatten(0, (-1, 16)).unflatten(2, (-1, 16))
    scales = blocks.abs().amax((1, 3), keepdim=True) / 448
    small = (blocks / scales).to(torch.float8_e4m3fn)
    meant = (small.float() * scales).reshape(weight.shape)
    return {name: small.reshape(weight.shape), f"{name}_scale_inv": scales.squeeze(3, 1)}, meant


def in_rows(name: str, weight: torch.Tensor):
    """FP8 with a scale for every row."""
    scales = weight.abs().amax(1, keepdim=True) / 448
    small = (weight / scales).to(torch.float8_e4m3fn)
    return {name: small, f"{name}_scale": scales}, small.float() * scales


def config_groups(**weights) -> dict:
    group = {"targets": ["Linear"], "weights": weights}
    return {"config_groups": {"group_0": group}, "quantization_status": "compressed"} | {
        "ignore": ["lm_head"]
    }


FP8_BLOCKS = {"quant_method": "fp8", "weight_block_size": [16, 16], "activation_scheme": "dynamic"}
FP8_ROWS = {"quant_method": "compressed-tensors", "format": "float-quantized"}
FP8_ROWS |= config_groups(num_bits=8, type="float", strategy="channel", symmetric=True)


@pytest.mark.parametrize(
    ("change", "quantization"),
    [(in_blocks, FP8_BLOCKS), pytest.param(in_rows, FP8_ROWS, marks=COMPRESSED)],
)
def test_weights_are_read_with_their_scales(change, quantization, tmp_path):
    meant = change_weights(llama(tmp_path), change)
    mark(tmp_path, quantization)
    config = settings(str(tmp_path))
    model = load_base_model(config.model)
    for name, weight in meant.items():
        torch.testing.assert_close(model.state_dict()[name], weight)
    policy = load_policy(config.model, seed=0)
    assert base_precision(policy) == f"float32, read out of {quantization['quant_method']}"
    assert rehearse(config, policy, PROMPTS).gradient < 1e-5


@pytest.mark.parametrize(
    "method", ["awq", "gptq", "hqq", "torchao", "aqlm", "fbgemm_fp8", "modelopt", "of-tomorrow"]
)
def test_what_cannot_be_trained_on_says_what_runs(method, tmp_path):
    llama(tmp_path)
    mark(tmp_path, {"quant_method": method, "bits": 4, "group_size": 32})
    with pytest.raises(ConfigError, match=rf"model\.path.*\({method}, .* what runs: float32"):
        load_policy(ModelConfig(path=str(tmp_path), lora_rank=2), seed=0)


def test_scales_that_the_config_does_not_tell_of_are_not_ignored(tmp_path):
    change_weights(llama(tmp_path), in_rows)
    with pytest.raises(ConfigError, match=r"14 tensors like .*weight_scale.*what runs"):
        load_policy(ModelConfig(path=str(tmp_path), lora_rank=2), seed=0)


def test_eight_bits_whose_rows_depend_on_each_other_are_refused(tmp_path):
    llama(tmp_path)
    mark(tmp_path, {"quant_method": "bitsandbytes", "load_in_8bit": True})
    with pytest.raises(ConfigError, match=r"LLM\.int8.*neighbours"):
        load_policy(ModelConfig(path=str(tmp_path), lora_rank=2), seed=0)


@pytest.mark.skipif(bool(find_spec("bitsandbytes")), reason="bitsandbytes is there")
@pytest.mark.parametrize("stored", [False, True])
def test_four_bits_without_the_package(random_model, tmp_path, stored):
    llama(tmp_path)
    mark(tmp_path, {"quant_method": "bitsandbytes", "load_in_4bit": True})
    model = {"path": str(tmp_path)} if stored else {"path": random_model, "load_in_4bit": True}
    with pytest.raises(ConfigError, match=r"^model\.(path|load_in_4bit): .*pip install"):
        load_policy(ModelConfig(**model, lora_rank=2), seed=0)


def test_vllm_does_not_sample_from_another_base():
    with pytest.raises(ConfigError, match=r"model\.load_in_4bit.*rollout\.sampler to hf"):
        parse_config({"model": {"load_in_4bit": True}, "rollout": {"sampler": "vllm"}})


def test_the_precision_of_the_base_is_told(random_model):
    policy = load_policy(ModelConfig(path=random_model, lora_rank=2, dtype="bfloat16"), seed=0)
    assert base_precision(policy) == "bfloat16"


# ---------------------------------------------------------------- where bitsandbytes is installed


@BITSANDBYTES
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_four_bits(random_model, dtype, checkpointing):
    changes = {"dtype": dtype, "gradient_checkpointing": checkpointing}
    config = settings(random_model, load_in_4bit=True, **changes)
    policy = load_policy(config.model, seed=0)
    assert re.fullmatch(rf"nf4 \d+% \+ {dtype} \d+%", base_precision(policy))
    found = rehearse(config, policy, PROMPTS)
    assert found.repeated == 0
    assert found.gradient < (1e-5 if dtype == "float32" else 0.02)
    whole = load_policy(settings(random_model).model, seed=0)
    assert sum(map(entries, policy.parameters())) == sum(map(entries, whole.parameters()))


@BITSANDBYTES
def test_gradients_are_those_of_the_base_that_four_bits_stand_for(random_model, tmp_path):
    config = ModelConfig(path=random_model, lora_rank=2, load_in_4bit=True)
    dequantised(load_base_model(config), config).save_pretrained(tmp_path)
    other = ModelConfig(path=str(tmp_path), lora_rank=2)
    gradients = []
    for policy in (load_policy(config, seed=0), load_policy(other, seed=0).double()):
        ids = torch.arange(12).view(2, 6) + 3
        logits = policy(ids, attention_mask=torch.ones_like(ids)).logits
        trained = [p for p in policy.parameters() if p.requires_grad]
        parts = torch.autograd.grad(logits.log_softmax(-1)[..., 5].sum(), trained)
        gradients.append(torch.cat([part.flatten().double() for part in parts]))
    assert (gradients[0] - gradients[1]).norm() < 1e-5 * gradients[1].norm()


@BITSANDBYTES
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("storage", [torch.uint8, torch.bfloat16])
def test_checkpoints_stored_in_four_bits_train(kind, storage, tmp_path):
    llama(tmp_path)
    own = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_quant_storage=storage,
    )
    stored = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=own)
    stored.save_pretrained(tmp_path)
    config = settings(str(tmp_path))
    policy = load_policy(config.model, seed=0)
    assert kind in base_precision(policy)
    assert rehearse(config, policy, PROMPTS).gradient < 1e-5
    with pytest.raises(ConfigError, match="quantised already"):
        load_policy(ModelConfig(path=str(tmp_path), load_in_4bit=True), seed=0)


@BITSANDBYTES
def test_an_adapter_is_merged_into_the_weights_it_was_trained_on(tmp_path):
    changes = {"load_in_4bit": True, "path": "builtin:tiny"}
    trained_adapter("builtin:tiny", tmp_path / "adapter", **changes)
    config = ModelConfig(path="builtin:tiny", load_in_4bit=True)
    merge(config, str(tmp_path / "adapter"), tmp_path / "merged")  # compares the greedy text
    merged = load_base_model(ModelConfig(path=str(tmp_path / "merged")))
    policy = load_policy(config.model_copy(update={"adapter": str(tmp_path / "adapter")}), seed=0)
    ids = torch.arange(12).view(2, 6) + 3
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, policy(ids).logits, rtol=1e-3, atol=1e-3)
