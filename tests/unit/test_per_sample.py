"""Per-sample gradients against autograd, one sample at a time, in float64."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from capo_ds.config import ConfigError
from capo_ds.gradients.per_sample import PerSampleGradients
from capo_ds.gradients.store import GradientStore
from capo_ds.models import token_log_probs

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MODELS = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}


def tiny_policy(kind: str = "qwen2", targets: list[str] = ATTENTION, **lora):
    torch.manual_seed(0)
    config, model = MODELS[kind]
    base = model(config(**SIZES, initializer_range=0.3)).double()
    policy = get_peft_model(base, LoraConfig(r=3, target_modules=targets, **lora))
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, dtype=torch.float64) * 0.3
    return policy.train()


def padded_batch(samples: int = 5):
    """Left-padded prompts and right-padded completions of uneven lengths."""
    prompt_lengths = torch.tensor([2, 5, 3, 1, 4])[:samples]
    lengths = torch.tensor([6, 1, 3, 4, 6])[:samples]
    mask = torch.cat(
        [
            torch.arange(5)[None] >= 5 - prompt_lengths[:, None],
            torch.arange(6)[None] < lengths[:, None],
        ],
        1,
    )
    ids = torch.randint(2, 50, (samples, 11), generator=torch.Generator().manual_seed(1))
    return ids * mask, mask.long(), mask[:, 5:]


def objectives(policy, batch):
    weights = torch.linspace(-1, 2, len(batch[0]), dtype=torch.float64)
    return token_log_probs(policy, *batch, temperature=0.8).sum(1) * weights


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("targets", [ATTENTION, [*ATTENTION, "gate_proj", "up_proj", "down_proj"]])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_equal_to_autograd_sample_by_sample(kind, targets, checkpointing):
    policy = tiny_policy(kind, targets)
    if checkpointing:
        policy.gradient_checkpointing_enable({"use_reentrant": False})
    batch = padded_batch()
    per_sample = PerSampleGradients(policy)
    store = GradientStore(per_sample.parameters, 5)
    values = per_sample.backward(lambda: objectives(policy, batch), store, first=0)
    torch.testing.assert_close(values, objectives(policy, batch).detach())
    for i in range(5):
        single = objectives(policy, batch)[i]
        expected = torch.autograd.grad(single, per_sample.parameters)
        for rows, gradient in zip(store.rows, expected, strict=True):
            torch.testing.assert_close(rows[i], gradient, rtol=1e-10, atol=1e-10)
    assert all(parameter.grad is None for parameter in policy.parameters())


def test_micro_batches_fill_the_store_alike():
    policy = tiny_policy()
    batch = padded_batch()
    per_sample = PerSampleGradients(policy)
    whole, parts = GradientStore(per_sample.parameters, 5), GradientStore(per_sample.parameters, 5)
    weights = torch.linspace(-1, 2, 5, dtype=torch.float64)
    per_sample.backward(lambda: objectives(policy, batch), whole, first=0)
    for rows in (torch.tensor([0, 1]), torch.tensor([2]), torch.tensor([3, 4])):
        part = tuple(values[rows] for values in batch)
        per_sample.backward(
            lambda part=part, rows=rows: token_log_probs(policy, *part, 0.8).sum(1) * weights[rows],
            parts,
            first=int(rows[0]),
        )
    for ours, expected in zip(parts.rows, whole.rows, strict=True):
        torch.testing.assert_close(ours, expected)


def test_combine_is_the_weighted_sum_and_discard_keeps_nan_out():
    policy = tiny_policy()
    per_sample = PerSampleGradients(policy)
    store = GradientStore(per_sample.parameters, 3)
    for rows in store.rows:
        rows.normal_()
    coefficients = torch.tensor([0.5, 0.0, -2.0], dtype=torch.float64)
    expected = [0.5 * rows[0] - 2 * rows[2] for rows in store.rows]
    store.rows[0][1] = float("nan")
    store.discard(coefficients == 0)
    for ours, reference in zip(store.combine(coefficients), expected, strict=True):
        torch.testing.assert_close(ours, reference)


def test_hooks_leave_ordinary_passes_alone():
    policy = tiny_policy()
    before = objectives(policy, padded_batch()).detach()
    PerSampleGradients(policy)
    torch.testing.assert_close(objectives(policy, padded_batch()), before, rtol=0, atol=0)
    objectives(policy, padded_batch()).sum().backward()
    assert all(p.grad is not None for p in policy.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("lora", "word"), [({"lora_dropout": 0.1}, "dropout"), ({"use_dora": True}, "DoRA")]
)
def test_what_has_no_per_sample_gradient_is_refused(lora, word):
    with pytest.raises(ConfigError, match=word):
        PerSampleGradients(tiny_policy(**lora))


def test_other_trainable_parameters_are_refused():
    policy = tiny_policy()
    policy.get_output_embeddings().weight.requires_grad_()
    with pytest.raises(ConfigError, match="lm_head"):
        PerSampleGradients(policy)


def test_a_factor_used_twice_is_refused():
    policy = tiny_policy()
    layers = policy.get_base_model().model.layers
    layers[1].self_attn.q_proj = layers[0].self_attn.q_proj
    per_sample = PerSampleGradients(policy)
    with pytest.raises(RuntimeError, match="twice"):
        per_sample.backward(
            lambda: objectives(policy, padded_batch()), GradientStore(per_sample.parameters, 5), 0
        )


def test_an_unused_factor_is_an_error():
    policy = tiny_policy()
    per_sample = PerSampleGradients(policy)
    policy.get_base_model().model.layers = nn.ModuleList(policy.get_base_model().model.layers[:1])
    policy.get_base_model().config.num_hidden_layers = 1
    with pytest.raises(RuntimeError, match="LoRA factors were used"):
        per_sample.backward(
            lambda: objectives(policy, padded_batch()), GradientStore(per_sample.parameters, 5), 0
        )
