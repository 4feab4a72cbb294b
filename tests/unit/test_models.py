import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import log_softmax
from transformers import Gemma2Config, Gemma2ForCausalLM

from capo_ds import log_probs
from capo_ds.config import BUILTIN_MODELS, ConfigError, ModelConfig
from capo_ds.gradients.per_sample import PerSampleGradients
from capo_ds.models import load_policy, load_tokenizer, reference_policy, token_log_probs
from capo_ds.weights import load_base_model


def policy_config(path: str, **changes) -> ModelConfig:
    return ModelConfig(path=path, **({"lora_rank": 2, "lora_alpha": 4} | changes))


def inputs():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 200, (3, 12), generator=generator)
    return ids, torch.ones_like(ids), torch.ones(3, 7, dtype=torch.bool)


def test_log_probs_are_those_of_the_full_logits(random_model, monkeypatch):
    monkeypatch.setattr(log_probs, "LOGIT_CHUNK_TOKENS", 5)  # several chunks, the last one short
    policy = load_policy(policy_config(random_model), seed=0)
    ids, mask, completion = inputs()
    ours = token_log_probs(policy, ids, mask, completion, temperature=0.7)
    logits = policy(ids, attention_mask=mask).logits[:, -8:-1] / 0.7
    expected = log_softmax(logits, -1).gather(2, ids[:, -7:, None]).squeeze(2)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_the_policy_is_deterministic(random_model):
    policy = load_policy(policy_config(random_model), seed=0)
    assert not any(module.training for module in policy.modules())
    torch.testing.assert_close(
        token_log_probs(policy, *inputs(), 1.0), token_log_probs(policy, *inputs(), 1.0)
    )


def test_lora_factors_are_float32_over_a_bfloat16_base(random_model):
    policy = load_policy(policy_config(random_model, dtype="bfloat16"), seed=0)
    kinds = {p.requires_grad: p.dtype for p in policy.parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}
    assert token_log_probs(policy, *inputs(), 1.0).dtype == torch.float32


def test_the_seed_decides_the_adapter(random_model):
    def factors(seed):
        policy = load_policy(policy_config(random_model), seed)
        return torch.cat([p.flatten() for p in policy.parameters() if p.requires_grad])

    assert torch.equal(factors(1), factors(1))
    assert not torch.equal(factors(1), factors(2))


def test_the_reference_is_the_base(random_model):
    policy = load_policy(policy_config(random_model), seed=0)
    before = token_log_probs(policy, *inputs(), 1.0)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    assert not torch.allclose(token_log_probs(policy, *inputs(), 1.0), before)
    with reference_policy(policy):
        reference = token_log_probs(policy, *inputs(), 1.0)
    torch.testing.assert_close(reference, before)
    assert not reference.requires_grad


TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


@pytest.fixture
def part_of_tiny(tmp_path):
    """Makes a folder that holds some of a model's files."""

    def copy(*names: str) -> str:
        for name in names:
            shutil.copy(BUILTIN_MODELS["builtin:tiny"] / name, tmp_path)
        return str(tmp_path)

    return copy


def told(load, path: str) -> str:
    with pytest.raises(ConfigError) as error:
        load(path)
    assert str(error.value).startswith("model.path: ") and "\n" not in str(error.value)
    return str(error.value)


def base(path: str):
    return load_base_model(ModelConfig(path=path))


@pytest.mark.parametrize("load", [load_tokenizer, base])
def test_an_empty_folder_is_told(load, part_of_tiny):
    assert "holds no config.json" in told(load, part_of_tiny())


def test_a_tokenizer_may_stand_alone(part_of_tiny):
    folder = part_of_tiny(*TOKENIZER)
    assert len(load_tokenizer(folder)) == len(load_tokenizer("builtin:tiny"))
    assert "holds no config.json" in told(base, folder)


def test_lacking_weights_are_told(part_of_tiny):
    text = told(base, part_of_tiny("config.json", *TOKENIZER))
    assert text.endswith(
        "no weights are there (model*.safetensors or pytorch_model*.bin); get the folder whole"
    )


@pytest.mark.parametrize("beside", [(), ("tokenizer_config.json",)])
def test_a_lacking_tokenizer_is_told(beside, part_of_tiny):
    text = told(load_tokenizer, part_of_tiny("config.json", "model.safetensors", *beside))
    assert "looked for tokenizer.json, vocab.json, merges.txt, and found none" in text


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2", "gpt_neox", "phi3"])
def test_so_is_that_of_other_models(kind, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    assert "tokenizer.json" in told(load_tokenizer, str(tmp_path))


def test_a_vocabulary_and_its_merges_serve_together(part_of_tiny, tmp_path):
    folder = part_of_tiny("config.json", "tokenizer_config.json")
    parts = json.loads((BUILTIN_MODELS["builtin:tiny"] / "tokenizer.json").read_text())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(parts["vocab"]))
    assert "and found only vocab.json" in told(load_tokenizer, folder)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in parts["merges"]]
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    whole = load_tokenizer("builtin:tiny")
    assert load_tokenizer(folder)("12 + 30").input_ids == whole("12 + 30").input_ids


def test_what_cannot_be_loaded_names_its_key(random_model, tmp_path):
    with pytest.raises(ConfigError, match=r"model\.path"):
        load_tokenizer(str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"model\.path"):
        load_policy(policy_config(str(tmp_path / "nowhere")), seed=0)
    with pytest.raises(ConfigError, match=r"model\.lora_rank: 1000000 .* 32; lower it"):
        load_policy(policy_config(random_model, lora_rank=1000000), seed=0)
    with pytest.raises(ConfigError, match=r"model\.lora_targets.*zz_proj.*q_proj"):
        load_policy(policy_config(random_model, lora_targets=["zz_proj"]), seed=0)


def _changed(random_model, folder, change) -> str:
    """A copy of a model, its tensors changed."""
    shutil.copytree(random_model, folder)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def test_weights_that_are_no_numbers_or_of_another_shape_are_named(random_model, tmp_path):
    name = "model.layers.0.mlp.up_proj.weight"
    path = _changed(random_model, tmp_path / "nan", lambda w: w[name].fill_(float("nan")))
    with pytest.raises(ConfigError, match=r"logits .* NaN: .*0\.mlp\.up_proj.* get the weights"):
        load_policy(policy_config(path), seed=0)
    cut = tmp_path / "cut"
    path = _changed(random_model, cut, lambda w: w.update({name: w[name][:5].clone()}))
    with pytest.raises(ConfigError, match=r"1 have another shape .*up_proj.weight: \(5, .*, not"):
        load_policy(policy_config(path), seed=0)


def test_an_index_of_weights_that_is_none_is_named(random_model, tmp_path):
    for number, text in enumerate(("{", "{}", "[]")):
        folder = shutil.copytree(random_model, tmp_path / str(number))
        (folder / "model.safetensors.index.json").write_text(text)
        with pytest.raises(ConfigError, match=r"model\.path: .*index\.json is no index of weights"):
            load_base_model(policy_config(str(folder)))


def test_outputs_that_a_config_asks_for_are_not_kept(random_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(random_model, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"return_dict": False, "output_hidden_states": True, "output_attentions": True}
    (folder / "config.json").write_text(json.dumps(config))
    policy = load_policy(policy_config(str(folder)), seed=0)
    output = policy(input_ids=torch.ones(1, 3, dtype=torch.long))
    assert output.hidden_states is None and output.attentions is None


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_layers_without_per_sample_gradients_are_refused(random_model, target):
    with pytest.raises(ConfigError, match=r"model\.lora_targets"):
        policy = load_policy(policy_config(random_model, lora_targets=["q_proj", target]), seed=0)
        PerSampleGradients(policy)


def test_checkpointing_recomputes_what_is_differentiated(random_model):
    policy = load_policy(policy_config(random_model, gradient_checkpointing=True), seed=0)
    passes = []
    layer = policy.get_base_model().get_decoder().layers[0]
    layer.mlp.register_forward_pre_hook(lambda *_: passes.append(1))
    token_log_probs(policy, *inputs(), 1.0).sum().backward()
    assert len(passes) == 2
    assert not any(module.training for module in policy.modules())
    passes.clear()
    with torch.no_grad():
        token_log_probs(policy, *inputs(), 1.0)
    assert len(passes) == 1


def test_logits_that_are_changed_after_the_output_layer_are_taken_whole(tmp_path):
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=200,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        final_logit_softcapping=2.0,
        initializer_range=0.5,
    )
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    policy = load_policy(policy_config(str(tmp_path)), seed=0)
    ids, mask, completion = inputs()
    ours = token_log_probs(policy, ids, mask, completion, temperature=0.7)
    logits = policy(ids, attention_mask=mask).logits[:, -8:-1]
    assert 1 < logits.abs().max() < 2  # capped, and felt
    expected = log_softmax(logits / 0.7, -1).gather(2, ids[:, -7:, None]).squeeze(2)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("biased", [False, True])
def test_linear_log_probs_and_their_gradient(biased, monkeypatch):
    monkeypatch.setattr(log_probs, "LOGIT_CHUNK_TOKENS", 4)
    torch.manual_seed(0)
    hidden = torch.randn(10, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(20, 6, dtype=torch.float64)
    bias = torch.randn(20, dtype=torch.float64) if biased else None
    targets = torch.randint(0, 20, (10,))

    def ours(hidden):
        return log_probs.linear_log_probs(hidden, weight, bias, targets, 0.7)

    logits = torch.nn.functional.linear(hidden, weight, bias) / 0.7
    expected = logits.log_softmax(1).gather(1, targets[:, None]).squeeze(1)
    torch.testing.assert_close(ours(hidden), expected, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(ours, hidden)


def test_logits_of_a_whole_batch_are_never_held():
    """Peak memory of the head's forward and backward pass, against the size of all its logits."""
    tokens, vocabulary = 4 * log_probs.LOGIT_CHUNK_TOKENS, 8192
    hidden = torch.randn(tokens, 8, requires_grad=True)
    weight, targets = torch.randn(vocabulary, 8), torch.zeros(tokens, dtype=torch.long)
    with torch.profiler.profile(profile_memory=True) as profiler:
        log_probs.linear_log_probs(hidden, weight, None, targets, 1.0).sum().backward()
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    assert peak > 0.9 * 4 * log_probs.LOGIT_CHUNK_TOKENS * vocabulary  # the measurement works
    assert peak < 0.9 * 4 * tokens * vocabulary
