"""Policy, sampler, update and Gram matrix on tensors that pretend to be on a GPU: nothing mixes
devices, and the host waits for the device no more often than is said here."""

import importlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from capo_ds.config import parse_config
from capo_ds.learner import Learner
from capo_ds.learning.batch import Batch
from capo_ds.models import load_policy
from capo_ds.rollout.base import Draw
from capo_ds.rollout.hf import HuggingFaceSampler
from capo_ds.rollout.rollout import Rollout
from capo_ds.telemetry.metrics import Measures, PhaseTimer
from tests.pretend import GPU, MixedDevices, PretendedEngine, PretendedGPU

pytestmark = pytest.mark.usefixtures("process_group")
PROMPTS, GROUP, LIMIT, ROWS = [[5, 6, 3], [8], [9, 10, 11, 12], [15, 16]], 4, 12, 4
SAMPLES = len(PROMPTS) * GROUP
PASSES = SAMPLES // ROWS
# How often the host may wait. transformers waits once a training pass and twice a decoding pass (it
# looks whether masks mask anything); the rest is ours.
DECODED_TOKEN, MICRO_BATCH, UPDATE = 1 + 2, 1 + 1, 10
STORES = {
    "exact": {"gradients": {"store": "device"}},
    "exact, bfloat16": {"gradients": {"store": "device", "dtype": "bfloat16"}},
    "exact, host": {"gradients": {"store": "host"}},
    "exact, one program a layer": {"program": {"blocks": "layer"}, "capo": {"radius": 0.5}},
    "rademacher": {"gradients": {"store": "device", "sketch": "rademacher", "sketch_dim": 64}},
    "sparse": {"gradients": {"store": "device", "sketch": "sparse", "sketch_dim": 64}},
    "outer": {"gradients": {"store": "device", "sketch": "outer", "sketch_dim": 64}},
    "sparse, recompute": {"gradients": {"store": "recompute", "sketch": "sparse"}},
    "mean": {"aggregator": "mean", "measure_conflict": False},
}


def learner(folder: str, **settings) -> Learner:
    config = parse_config(
        {
            "model": {"path": folder, "lora_rank": 2, "lora_alpha": 4},
            "rollout": {
                "prompts_per_step": len(PROMPTS),
                "group_size": GROUP,
                "max_new_tokens": LIMIT,
            },
            "objective": {"kl_weight": 0.1, "mask_truncated": True},
            "deepspeed": "ds_configs/zero0.json",
            "train": {"output_dir": folder, "micro_batch_size": ROWS},
        }
        | settings
    )
    policy = load_policy(config.model, seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    engine = PretendedEngine(policy, config, optimizer_steps=2, monitor_dir=folder)
    kind = config.gradients.store
    return Learner(config, engine, "device" if kind == "auto" else kind, PhaseTimer())


@pytest.fixture
def gpu() -> Iterator[PretendedGPU]:
    with PretendedGPU() as gpu:
        yield gpu


@contextmanager
def on_gpu(one: Learner) -> Iterator[PretendedGPU]:
    """With the policy's weights there."""
    with PretendedGPU() as gpu:
        gpu.adopt(one.engine.module)
        yield gpu


def sampled(one: Learner, temperature: float = 1.0) -> Rollout:
    sampler = HuggingFaceSampler(one.engine.module, (2, 7), 0, LIMIT, batch_size=64)
    draws = [Draw(0, 0, number) for number in range(len(PROMPTS))]
    return sampler.sample(PROMPTS, draws, GROUP, temperature)


def prepared(one: Learner, rollout: Rollout) -> Batch:
    advantages = torch.linspace(-1, 1, SAMPLES).to(GPU)
    return one.prepare(rollout, advantages, torch.arange(SAMPLES, device=GPU))


def test_sampling(random_model):
    one = learner(random_model)
    with on_gpu(one) as gpu:
        rollout = sampled(one)
        assert rollout.completion_ids.device == rollout.entropy.device == GPU
    tokens = rollout.completion_ids.shape[1]
    assert gpu.waits.total() <= DECODED_TOKEN * tokens + 5, gpu.waits
    assert gpu.uploads.total() <= 8, gpu.uploads


def test_fixed_log_probabilities(random_model):
    one = learner(random_model)
    with on_gpu(one) as gpu:
        rollout = sampled(one)
        with gpu.counting() as (waits, uploads):
            prepared(one, rollout)
    assert waits.total() <= PASSES * MICRO_BATCH + 6, waits
    assert uploads.total() <= 4, uploads


@pytest.mark.parametrize("store", STORES)
def test_update(random_model, store):
    one = learner(random_model, **STORES[store])
    with on_gpu(one) as gpu:
        batch = prepared(one, sampled(one))
        with gpu.counting() as (waits, uploads):
            told = one.update(batch, number=0)
            measures = Measures()
            for measured in told.measures:
                measures.add(measured)
            metrics = Measures.merge([measures.take()])
    passes = PASSES + (1 if "recompute" in store else 0)
    layers = 2 if "layer" in store else 1  # a Gram matrix each
    assert waits.total() <= passes * MICRO_BATCH + UPDATE + layers, waits
    factors = len(one.engine.parameters)
    assert uploads.total() <= (2 * factors if "host" in store else 0) + 8, uploads
    assert math.isfinite(metrics["loss/kl"]) and metrics["loss/grad_norm"] > 0


def test_pretending_changes_no_result(random_model):
    found = []
    for pretended in (False, True):
        one = learner(random_model)
        applied: list[torch.Tensor] = []
        one.engine.apply = lambda parts, to=applied: to.extend(parts) or 0.0
        if pretended:
            with on_gpu(one):
                one.update(prepared(one, sampled(one)), number=0)
        else:
            rollout = sampled(one)
            advantages, numbers = torch.linspace(-1, 1, SAMPLES), torch.arange(SAMPLES)
            one.update(one.prepare(rollout, advantages, numbers), number=0)
        found.append(torch.cat([part.flatten() for part in applied]))
    assert found[0].norm() > 0
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


def test_the_benchmark_for_gpus_runs(repository, monkeypatch, tmp_path):
    """benchmarks/gpu.py, which has no GPU to be tried on."""
    monkeypatch.syspath_prepend(repository / "benchmarks")
    shape, main = importlib.import_module("gpu_shape"), importlib.import_module("gpu")
    monkeypatch.setattr(shape, "CapoEngine", PretendedEngine)
    monkeypatch.setattr(shape, "find_spec", lambda name: None)  # no vLLM: it starts on real GPUs
    monkeypatch.setitem(shape.CEILING_SIZES, "cuda", (64, 1 << 12))
    monkeypatch.setattr(shape, "REPEATS", 1)
    monkeypatch.setattr(shape.seconds_of, "__defaults__", (1,))
    record = shape.Record(tmp_path / "found.json", deadline=math.inf)
    with PretendedGPU():
        shape.measure_shape("tiny", 8, record, tmp_path)
    found = json.loads((tmp_path / "found.json").read_text())
    assert not main.failures(found), found
    measured = {name for name, row in found.items() if "backward_flops" in row}
    assert measured == {shape.PLAIN, *shape.ORDER}
    assert all(found[name]["seconds"] > 0 for name in measured)
    assert found["rollout, hf"]["tokens_a_second"] > 0
    assert "CAPO, exact" in main.table("tiny", found)


def test_the_benchmark_tells_what_fails_and_goes_on(repository, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(repository / "benchmarks")
    shape, main = importlib.import_module("gpu_shape"), importlib.import_module("gpu")
    record = shape.Record(tmp_path / "found.json", deadline=math.inf)
    assert "ZeroDivisionError" in record.measure("broken", lambda: 1 / 0)["failed"]
    assert record.measure("whole", lambda: {"seconds": 1.0}) == {"seconds": 1.0}
    assert main.failures(json.loads((tmp_path / "found.json").read_text())) == 1
    late = shape.Record(tmp_path / "late.json", deadline=0.0)
    assert "skipped" in late.measure("late", lambda: 1 / 0)


# ---------------------------------------------------------------- the pretence itself


def test_mixing_devices_fails(gpu):
    ours, theirs = torch.ones(3, device=GPU), torch.ones(3)
    for mix in (lambda: ours + theirs, lambda: torch.cat([ours, theirs]), lambda: ours @ theirs):
        with pytest.raises(MixedDevices, match=r"cuda:0.*cpu"):
            mix()
    with pytest.raises(MixedDevices, match="indices on the GPU"):
        theirs[ours.long() - 1]
    with pytest.raises(TypeError, match="CUDA"):
        ours.numpy()
    assert (ours + 1 + torch.tensor(2.0)).device == GPU  # a number may come from anywhere
    assert (theirs.to(GPU) * ours).device == ours[1:].device == ours.new_zeros(2).device == GPU


def test_in_a_backward_pass_too(gpu):
    class Mixing(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            return value * 2

        @staticmethod
        def backward(ctx, gradient):
            return gradient + torch.ones(3)

    leaf = torch.ones(3, device=GPU).requires_grad_()
    with pytest.raises(MixedDevices):
        torch.autograd.grad(Mixing.apply(leaf).sum(), leaf)


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x[0] > 0),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.unique(),
        lambda x: x.masked_select(x > 0),
        lambda x: x.repeat_interleave(x.long()),
        lambda x: torch.zeros(3).copy_(x),
    ],
)
def test_waits_are_counted(gpu, wait):
    values = torch.ones(3, device=GPU)
    assert not gpu.waits
    wait(values)
    assert gpu.waits.total() == 1
    wait(torch.ones(3))
    assert gpu.waits.total() == 1  # on the CPU nothing is waited for


def test_what_needs_no_waiting_is_not_counted(gpu):
    values = torch.ones(3, device=GPU)
    values[values > 0] = 0.0
    values.masked_fill(values > 0, 1.0)
    (values > 0).nonzero_static(size=2)
    values.repeat_interleave(torch.ones(3, device=GPU).long(), output_size=3)
    torch.where(values > 0, values, 0.0).sum()
    assert not gpu.waits and not gpu.uploads
    values[torch.tensor([0, 1])] = 0.0
    torch.tensor([1.0], device=GPU)
    assert gpu.uploads.total() == 2
