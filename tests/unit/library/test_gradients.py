"""Per-sample gradients in a loop of one's own, against autograd one sample at a time in float64."""

import copy

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

import capo_ds
from capo_ds.config import ConfigError
from tests.unit.test_per_sample import MODELS, SIZES, padded_batch, tiny_policy

WEIGHTS = np.array([0.5, -1.0, 0.0, 2.0, 0.25])


def losses_of(model, batch, rows=slice(None)):
    """(B,) each row's own cross-entropy, weighed unlike the others."""
    ids, mask = batch[0][rows], batch[1][rows]
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    tokens = nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    scale = torch.linspace(-1, 2, 5, dtype=logits.dtype)[rows]
    return (tokens * mask[:, 1:]).sum(1) * scale


def by_autograd(model, losses, retain=True):
    """(N, d) one backward pass for each sample."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    rows = [torch.autograd.grad(loss, parameters, retain_graph=retain) for loss in losses]
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


def in_their_order(model, gradients):
    """(N, d) of what was gathered, by the order of the model's parameters."""
    rows = dict(zip(map(id, gradients.parameters), gradients.rows(), strict=True))
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.cat([rows[id(p)].flatten(1) for p in trained], 1)


def count_hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def grads(model):
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("checkpointing", [None, False, True])  # use_reentrant
def test_gradients_gram_and_sum_are_those_of_autograd(kind, checkpointing):
    model, batch = tiny_policy(kind, MODELS[kind][2]), padded_batch()
    expected = by_autograd(model, losses_of(model, batch))
    if checkpointing is not None:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
    hooks = count_hooks(model)
    with capo_ds.per_sample_gradients(model) as gradients:
        for rows in (slice(0, 2), slice(2, 3), slice(3, 5)):
            losses_of(model, batch, rows).sum().backward()
    assert len(gradients) == 5
    torch.testing.assert_close(grads(model), expected.sum(0))  # what it would be without
    torch.testing.assert_close(in_their_order(model, gradients), expected)
    np.testing.assert_allclose(gradients.gram(), (expected @ expected.T).numpy(), rtol=1e-9)
    gradients.combine(WEIGHTS)
    torch.testing.assert_close(grads(model), torch.from_numpy(WEIGHTS) @ expected)
    assert count_hooks(model) == hooks


@pytest.mark.parametrize("store", ["device", "host"])
def test_equal_weights_give_the_gradient_of_the_mean_in_float32_and_bfloat16(store):
    model, batch = tiny_policy().float(), padded_batch()
    losses_of(model, batch).mean().backward()
    expected = grads(model)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
        with capo_ds.per_sample_gradients(model, store, dtype) as gradients:
            losses_of(model, batch).sum().backward()
        gradients.combine(np.full(5, 0.2))
        assert (grads(model) - expected).norm() < tolerance * expected.norm()
        assert all(p.grad.dtype == p.dtype for p in gradients.parameters)


def test_only_passes_that_are_gone_back_through_count():
    model, batch = tiny_policy(), padded_batch()
    expected = by_autograd(model, losses_of(model, batch))
    with capo_ds.per_sample_gradients(model) as gradients:
        with torch.no_grad(), model.disable_adapter():
            losses_of(model, batch)  # a reference
        model.generate(input_ids=batch[0][:2, :4], max_new_tokens=3, do_sample=False)
        losses_of(model, batch)  # without a backward pass
        first, second = losses_of(model, batch, slice(0, 2)), losses_of(model, batch, slice(2, 5))
        second.sum().backward()
        first.sum().backward()
    torch.testing.assert_close(in_their_order(model, gradients), expected)  # forward passes' order


@pytest.mark.parametrize("checkpointing", [None, False, True])  # use_reentrant
@pytest.mark.parametrize("at_once", [False, True])
def test_two_passes_are_open_at_a_time(checkpointing, at_once):
    """Of unlike sizes; checkpointing runs layers again while the other pass is the latest."""
    model, batch = tiny_policy(), padded_batch()
    expected = by_autograd(model, losses_of(model, batch))
    if checkpointing is not None:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
    with capo_ds.per_sample_gradients(model) as gradients:
        first, second = losses_of(model, batch, slice(0, 2)), losses_of(model, batch, slice(2, 5))
        if at_once:
            (first.sum() + second.sum()).backward()
        else:
            first.sum().backward()
            second.sum().backward()
    torch.testing.assert_close(in_their_order(model, gradients), expected)


@pytest.mark.parametrize("checkpointing", [None, False, True])
def test_contexts_in_each_other_of_one_model_and_of_two(checkpointing):
    batch = padded_batch()
    models = [tiny_policy("qwen2"), tiny_policy("llama", ["q_proj", "down_proj"])]
    expected = [by_autograd(model, losses_of(model, batch)) for model in models]
    for model in models:
        if checkpointing is not None:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
    one, two = models
    with capo_ds.per_sample_gradients(one) as outer:
        with capo_ds.per_sample_gradients(two) as other, capo_ds.per_sample_gradients(one) as inner:
            losses = [losses_of(model, batch) for model in models]
            sum(part.sum() for part in losses).backward()
        losses_of(one, batch, slice(0, 2)).sum().backward()  # no longer the inner one's
    torch.testing.assert_close(in_their_order(one, inner), expected[0])
    torch.testing.assert_close(in_their_order(two, other), expected[1])
    both = torch.cat([expected[0], expected[0][:2]])
    torch.testing.assert_close(in_their_order(one, outer)[:5], both[:5])
    assert len(outer) == 7
    assert count_hooks(two) == 0 or checkpointing is not None


def test_one_object_over_several_steps():
    model, batch = tiny_policy(), padded_batch()
    with capo_ds.per_sample_gradients(model) as gradients:
        for _ in range(2):
            losses_of(model, batch).sum().backward()
            before = gradients.gram()
            gradients.clear()
    assert len(before) == 5 and len(gradients) == 0
    with pytest.raises(RuntimeError, match="no sample yet"):
        gradients.gram()


def test_lora_dropout_is_that_of_the_pass():
    model, batch = tiny_policy(lora_dropout=0.5), padded_batch()
    torch.manual_seed(1)
    expected = by_autograd(model, losses_of(model, batch))
    torch.manual_seed(1)
    with capo_ds.per_sample_gradients(model) as gradients:
        losses_of(model, batch).sum().backward()
    torch.testing.assert_close(in_their_order(model, gradients), expected)


def test_adapters_that_transformers_adds_and_embeddings_as_input():
    torch.manual_seed(0)
    config, kind, *_ = MODELS["llama"]
    model = kind(config(**SIZES, initializer_range=0.3)).double()
    model.add_adapter(LoraConfig(r=3, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    batch = padded_batch()

    def losses():
        embeddings = model.get_input_embeddings()(batch[0])
        return model(inputs_embeds=embeddings, attention_mask=batch[1]).logits[..., 3].sum(1)

    expected = by_autograd(model, losses())
    with capo_ds.per_sample_gradients(model) as gradients:
        losses().sum().backward()
    torch.testing.assert_close(in_their_order(model, gradients), expected)


def test_a_sample_that_is_nan_is_left_out():
    model, batch = tiny_policy(), padded_batch()
    expected = by_autograd(model, losses_of(model, batch))
    expected[1] = 0
    with capo_ds.per_sample_gradients(model) as gradients:
        losses = losses_of(model, batch)
        (losses * torch.tensor([1, torch.nan, 1, 1, 1])).sum().backward()
    answer = capo_ds.capo(gradients.gram(), [1, 1, -1, -1, 1])
    assert answer.dropped.tolist() == [False, True, False, False, False]
    gradients.combine(answer.weights)
    torch.testing.assert_close(grads(model), torch.from_numpy(answer.weights) @ expected)


def test_an_optimizer_goes_on_from_there():
    model, batch = tiny_policy(), padded_batch()
    twin = copy.deepcopy(model)
    with capo_ds.per_sample_gradients(model) as gradients:
        losses_of(model, batch).sum().backward()
    gradients.combine(torch.full((5,), 0.2))
    losses_of(twin, batch).mean().backward()
    for one in (model, twin):
        torch.optim.SGD([p for p in one.parameters() if p.requires_grad], lr=0.1).step()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ([1.0] * 4, r"got shape \(4,\)"),
        ([[1.0] * 5], r"got shape \(1, 5\)"),
        (1.0, r"got shape \(\)"),
        ([1.0, np.nan, 1.0, np.inf, 1.0], "got nan for sample 1"),
    ],
)
def test_weights_that_do_not_fit_are_told(weights, told):
    model = tiny_policy()
    with capo_ds.per_sample_gradients(model) as gradients:
        losses_of(model, padded_batch()).sum().backward()
    with pytest.raises(ValueError, match=f"weights must be 5 finite numbers, .* {told}"):
        gradients.combine(weights)


def test_a_pass_that_is_gone_back_through_twice_is_told():
    model = tiny_policy()
    with capo_ds.per_sample_gradients(model):
        losses = losses_of(model, padded_batch())
        losses.sum().backward(retain_graph=True)
        with pytest.raises(RuntimeError, match="gone back through twice"):
            losses.sum().backward()


def refused(model, words, kind=ValueError, **options):
    with pytest.raises(kind, match=words), capo_ds.per_sample_gradients(model, **options):
        pass


def test_models_without_trained_factors_are_refused(tmp_path):
    config, kind, *_ = MODELS["qwen2"]
    bare = kind(config(**SIZES))
    refused(bare, "is trainable but no LoRA factor", ConfigError)
    refused(bare.requires_grad_(False), "no active LoRA layers")
    get_peft_model(bare, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path)
    frozen = PeftModel.from_pretrained(kind(config(**SIZES)), tmp_path)
    refused(frozen, r"q_proj are frozen; .*is_trainable=True")
    refused(tiny_policy(), "store must be one of device, host, got 'disk'", store="disk")
    assert all(count_hooks(model) == 0 for model in (bare, frozen))


def test_hooks_are_gone_after_an_error():
    model = tiny_policy()
    with pytest.raises(ZeroDivisionError), capo_ds.per_sample_gradients(model):
        raise ZeroDivisionError
    assert count_hooks(model) == 0
