"""Compiled layers: the gradients of the layers as written, sample by sample too, from one code."""

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from capo_ds import compilation
from capo_ds.architecture import checkpoint_layers, layers_for
from capo_ds.compilation import compile_layers, uncompiled
from capo_ds.config import ConfigError, parse_config
from capo_ds.gradients.per_sample import PerSampleGradients
from capo_ds.models import load_policy
from tests.unit.test_per_sample import (
    MODELS,
    new_store,
    objectives,
    padded_batch,
    tiny_policy,
)


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounterWithBackend]:
    """Layers are traced, their backward passes too, and run as PyTorch has their operators: as
    exact as the layers as written, and without a C++ compiler's seconds."""
    torch.compiler.reset()
    counted = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(compilation.torch, "compile", partial(torch.compile, backend=counted))
    yield counted
    torch.compiler.reset()


def compiled_policy(kind: str, checkpointing: bool = False):
    _, _, attention, mlp = MODELS[kind]
    policy = tiny_policy(kind, attention + mlp)
    compile_layers(layers_for(policy.get_base_model(), "model.compile"))
    if checkpointing:
        checkpoint_layers(policy.get_base_model())
    return policy


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "checkpointing"), [*((kind, False) for kind in MODELS), ("qwen2", True)]
)
def test_per_sample_gradients_are_autograds(counter, kind, checkpointing):
    policy = compiled_policy(kind, checkpointing)
    batch = padded_batch()
    per_sample = PerSampleGradients(policy)
    store = new_store(per_sample)
    with torch.no_grad():
        objectives(policy, batch)
    assert counter.frame_count == 0  # what makes no gradients runs as ever
    values = per_sample.backward(lambda: objectives(policy, batch), store)
    assert counter.frame_count > 0
    with uncompiled():
        plain = objectives(policy, batch)
        torch.testing.assert_close(values, plain.detach())
        for sample in range(5):
            expected = torch.autograd.grad(plain[sample], per_sample.parameters, retain_graph=True)
            for rows, gradient in zip(store.rows, expected, strict=True):
                torch.testing.assert_close(rows[sample], gradient, rtol=1e-10, atol=1e-10)
    assert all(parameter.grad is None for parameter in policy.parameters())


@pytest.mark.slow
def test_layers_and_passes_of_all_widths_share_their_code(counter):
    """The first layer's input has no gradient, so it has a code of its own; both have one more for
    ordinary passes."""
    policy = compiled_policy("qwen2")
    per_sample = PerSampleGradients(policy)
    for samples in (5, 3, 4):
        batch = padded_batch(samples)
        per_sample.backward(lambda b=batch: objectives(policy, b), new_store(per_sample, samples))
    assert counter.frame_count == 2
    weights = per_sample.parameters
    for samples in (4, 5):
        torch.autograd.grad(objectives(policy, padded_batch(samples)).sum(), weights)
    assert counter.frame_count == 4


@pytest.mark.slow
def test_two_models_do_not_take_each_others_gradients(counter):
    policies = [compiled_policy("qwen2"), compiled_policy("qwen2")]
    with torch.no_grad():
        for weight in policies[1].parameters():
            weight.mul_(1.1)
    batch, stores = padded_batch(), []
    for policy in policies:
        per_sample = PerSampleGradients(policy)
        stores.append(new_store(per_sample))
        per_sample.backward(lambda one=policy: objectives(one, batch), stores[-1])
    again = PerSampleGradients(policies[0])
    stores.append(new_store(again))
    with uncompiled():
        again.backward(lambda: objectives(policies[0], batch), stores[-1])
    for first, second, plain in zip(*(store.rows for store in stores), strict=True):
        torch.testing.assert_close(first, plain, rtol=1e-10, atol=1e-10)
        assert not torch.allclose(second, plain, rtol=1e-3, atol=1e-3)


def test_what_cannot_be_compiled_is_refused():
    with pytest.raises(ConfigError, match=r"model\.compile.*4-bit"):
        parse_config({"model": {"compile": True, "load_in_4bit": True}})
    settings = parse_config({"model": {"compile": True}}).model
    with pytest.raises(ConfigError, match=r"model\.compile: ZeRO 3"):
        compilation.check_compilable(settings, zero_stage=3)
    compilation.check_compilable(settings, zero_stage=2)


@pytest.mark.slow
def test_the_key_compiles_the_policys_layers(counter, random_model):
    config = parse_config({"model": {"path": random_model, "lora_rank": 2, "compile": True}})
    policy = load_policy(config.model, seed=0)
    assert counter.frame_count == 0
    policy(input_ids=torch.tensor([[1, 2, 3], [3, 2, 1]])).logits.sum().backward()
    assert counter.frame_count == 2
