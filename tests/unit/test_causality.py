"""What is no causal language model is refused in one line, before its tokenizer and weights."""

import pytest
import torch
import transformers
from transformers import (
    BartConfig,
    BertConfig,
    BertLMHeadModel,
    CLIPVisionConfig,
    DebertaV2Config,
    LlamaConfig,
    ModernBertConfig,
    Qwen3Config,
    RobertaConfig,
    T5Config,
    ViTConfig,
    WhisperConfig,
    XLNetConfig,
    XLNetLMHeadModel,
)

from capo_ds.config import ConfigError, ModelConfig
from capo_ds.models import load_policy, load_tokenizer

SIZES = {"vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "intermediate_size": 48}
NEEDED = "what is trained is a causal language model"
OTHERS = {
    "T5ForConditionalGeneration": T5Config,
    "T5EncoderModel": T5Config,
    "BartForConditionalGeneration": BartConfig,
    "WhisperForConditionalGeneration": WhisperConfig,
    "BertModel": BertConfig,
    "BertForMaskedLM": BertConfig,
    "RobertaForSequenceClassification": RobertaConfig,
    "ModernBertForMaskedLM": ModernBertConfig,
    "DebertaV2Model": DebertaV2Config,
    "ViTForImageClassification": ViTConfig,
    "CLIPVisionModel": CLIPVisionConfig,
    "LlamaForSequenceClassification": LlamaConfig,
    "Qwen3ForTokenClassification": Qwen3Config,
}


@pytest.mark.parametrize("name", OTHERS)
def test_refused_by_config(name, tmp_path):
    assert hasattr(transformers, name)
    OTHERS[name](architectures=[name]).save_pretrained(tmp_path)
    for load in (load_tokenizer, lambda path: load_policy(ModelConfig(path=path), seed=0)):
        with pytest.raises(ConfigError) as told:
            load(str(tmp_path))
        message = str(told.value)
        assert message.startswith(f"model.path: '{tmp_path}' is a {name} (")
        assert NEEDED in message and "\n" not in message


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("scale", [0.02, 1.0])
def test_refused_by_a_pass_where_the_config_does_not_tell(dtype, scale, tmp_path):
    config = XLNetConfig(vocab_size=200, d_model=32, n_layer=2, n_head=4, d_inner=48)
    config.initializer_range = scale
    torch.manual_seed(0)
    XLNetLMHeadModel(config).save_pretrained(tmp_path)
    model = ModelConfig(path=str(tmp_path), dtype=dtype, lora_rank=2, lora_targets=["layer_1"])
    with pytest.raises(ConfigError, match=rf"this XLNetLMHeadModel .*tokens see.*{NEEDED}"):
        load_policy(model, seed=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_encoders_family_as_a_decoder(dtype, tmp_path):
    BertLMHeadModel(BertConfig(**SIZES, is_decoder=True)).save_pretrained(tmp_path)
    model = ModelConfig(path=str(tmp_path), dtype=dtype, lora_rank=2, lora_targets=["query"])
    assert not load_policy(model, seed=0).training
