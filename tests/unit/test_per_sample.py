"""Per-sample gradients against autograd, one sample at a time, in float64."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from capo_ds.config import ConfigError
from capo_ds.gradients.per_sample import PerSampleGradients
from capo_ds.gradients.store import GradientStore, HostStore
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
MLP = ["gate_proj", "up_proj", "down_proj"]
# kind: configuration, model, names of its attention's and of its MLP's linear layers
MODELS = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, ATTENTION, MLP),
    "llama": (LlamaConfig, LlamaForCausalLM, ATTENTION, MLP),
    # Fused projections, biases, attention beside the MLP.
    "gpt_neox": (
        GPTNeoXConfig,
        GPTNeoXForCausalLM,
        ["query_key_value", "attention.dense"],
        ["dense_h_to_4h", "dense_4h_to_h"],
    ),
    # Transposed base weights (Conv1D), learned positions, dropout in its configuration.
    "gpt2": (GPT2Config, GPT2LMHeadModel, ["c_attn", "attn.c_proj"], ["c_fc", "mlp.c_proj"]),
}


def tiny_policy(kind: str = "qwen2", targets: list[str] = ATTENTION, **lora):
    torch.manual_seed(0)
    config, model, *_ = MODELS[kind]
    off = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0) if kind == "gpt2" else {}
    base = model(config(**SIZES, initializer_range=0.3, **off)).double()
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


def new_store(per_sample, samples=5, dtype=torch.float64, kind=GradientStore):
    return kind(per_sample.shapes, samples, torch.device("cpu"), dtype)


def objectives(policy, batch):
    weights = torch.linspace(-1, 2, len(batch[0]), dtype=torch.float64)
    return token_log_probs(policy, *batch, temperature=0.8).sum(1) * weights


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("with_mlp", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("rslora", [False, True])
def test_equal_to_autograd_sample_by_sample(kind, with_mlp, checkpointing, rslora):
    _, _, attention, mlp = MODELS[kind]
    policy = tiny_policy(kind, attention + mlp * with_mlp, use_rslora=rslora)
    if checkpointing:
        policy.gradient_checkpointing_enable({"use_reentrant": False})
    batch = padded_batch()
    per_sample = PerSampleGradients(policy)
    store = new_store(per_sample)
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
    whole, parts = new_store(per_sample), new_store(per_sample)
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


@pytest.mark.parametrize("kind", [GradientStore, HostStore])
def test_a_bfloat16_store_rounds_each_gradient_once_and_sums_in_float32(kind):
    policy = tiny_policy()
    per_sample = PerSampleGradients(policy)
    exact = new_store(per_sample)
    rounded = new_store(per_sample, dtype=torch.bfloat16, kind=kind)
    batch = padded_batch()
    for store in (exact, rounded):
        per_sample.backward(lambda: objectives(policy, batch), store, first=0)
    for wide, narrow in zip(exact.rows, rounded.rows, strict=True):
        torch.testing.assert_close(narrow.double(), wide, rtol=2**-8, atol=0)
    coefficients = torch.tensor([1.0, -1.0, 0.5, 3.0, 1e-3])
    for ours, rows in zip(rounded.combine(coefficients), rounded.rows, strict=True):
        assert ours.dtype == torch.float32
        expected = torch.einsum("n,noi->oi", coefficients.double(), rows.double())
        torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-5)


def test_the_host_store_holds_what_the_device_store_holds():
    policy = tiny_policy()
    per_sample = PerSampleGradients(policy)
    stores = [new_store(per_sample, kind=kind) for kind in (GradientStore, HostStore)]
    batch = padded_batch()
    for store in stores:
        per_sample.backward(lambda: objectives(policy, batch), store, first=0)
        store.discard(torch.arange(5) == 3)
    device, host = stores
    for ours, expected in zip(host.matrices(), device.matrices(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=0)


def test_under_autocast_gradients_are_those_of_the_half_precision_pass():
    policy = tiny_policy().float()
    per_sample = PerSampleGradients(policy)
    store = new_store(per_sample, dtype=torch.float32)
    batch = padded_batch()

    def half_objectives():
        with torch.autocast("cpu", torch.bfloat16):
            return objectives(policy, batch)

    per_sample.backward(half_objectives, store, first=0)
    for i in range(5):
        expected = torch.autograd.grad(half_objectives()[i], per_sample.parameters)
        for rows, gradient in zip(store.rows, expected, strict=True):
            close = (rows[i] - gradient).norm() / gradient.norm()
            assert close < 0.03  # a few roundings to 8 bits
    assert any(rows.abs().max() > 0 for rows in store.rows)


def test_an_idle_pass_writes_nothing():
    policy = tiny_policy()
    per_sample = PerSampleGradients(policy)
    values = per_sample.backward(lambda: objectives(policy, padded_batch()), store=None)
    assert values.shape == (5,)


def test_inputs_without_a_batch_dimension_are_refused():
    policy = tiny_policy()
    per_sample = PerSampleGradients(policy)
    flat = policy.get_base_model().model.layers[0].self_attn.q_proj

    def mixed():  # as a mixture of experts feeds its experts: tokens of all samples together
        return flat(torch.randn(7, 16, dtype=torch.float64)).sum(1)

    with pytest.raises(RuntimeError, match=r"q_proj is called with .*cannot be told"):
        per_sample.backward(mixed, new_store(per_sample))


def test_combine_is_the_weighted_sum_and_discard_keeps_nan_out():
    policy = tiny_policy()
    per_sample = PerSampleGradients(policy)
    store = new_store(per_sample, 3)
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
    ("lora", "word"), [({"lora_dropout": 0.1}, "dropout=0"), ({"use_dora": True}, "DoRA has no")]
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
        per_sample.backward(lambda: objectives(policy, padded_batch()), new_store(per_sample), 0)


def test_an_unused_factor_is_an_error():
    policy = tiny_policy()
    per_sample = PerSampleGradients(policy)
    policy.get_base_model().model.layers = nn.ModuleList(policy.get_base_model().model.layers[:1])
    policy.get_base_model().config.num_hidden_layers = 1
    with pytest.raises(RuntimeError, match="LoRA factors were used"):
        per_sample.backward(lambda: objectives(policy, padded_batch()), new_store(per_sample), 0)
