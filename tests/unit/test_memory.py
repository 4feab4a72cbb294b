"""The estimate of memory, and the choice of a store by it."""

import json

import pytest
import torch
from transformers import (
    GPT2Config,
    MixtralConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
)

from capo_ds.capacity import Capacity
from capo_ds.config import ConfigError, parse_config
from capo_ds.cost.unloaded import unloaded_policy
from capo_ds.distributed.engine import CapoEngine
from capo_ds.memory import KEPT_OF_MLP, KEPT_OF_WIDTH, MemoryPlan, mlp_width, pinned, plan_memory
from capo_ds.models import load_policy
from capo_ds.rollout import colocated

GIB = 2**30
OWN_SAMPLERS = """
class Beside:
    def __init__(self, run):
        pass

class Shares(Beside):
    shares_policy = True
"""
STORES = {"device": Capacity(8 * GIB, 0), "host": Capacity(0, 8 * GIB)}
SKETCHED = STORES | {"recompute": Capacity(GIB, 0)}


def plan(stores: dict, device: float, host: float, shared: bool = False) -> MemoryPlan:
    capacity = Capacity(int(device * GIB), int(host * GIB), shared)
    return MemoryPlan({"weights": 10 * GIB}, stores, capacity)


@pytest.mark.parametrize(
    ("device", "host", "chosen"),
    [(80, 80, "device"), (15, 80, "host"), (15, 4, "recompute"), (5, 4, "recompute")],
)
def test_auto_takes_the_fastest_store_that_fits(device, host, chosen):
    assert plan(SKETCHED, device, host).choose("auto") == chosen


def test_a_store_asked_for_is_taken():
    assert plan(SKETCHED, 5, 4).choose("device") == "device"


def test_auto_without_sketches_says_what_to_do_where_nothing_fits():
    with pytest.raises(ConfigError, match=r"gradients\.store.*does not fit.*gradients\.sketch"):
        plan(STORES, 15, 4).choose("auto")


@pytest.mark.parametrize(
    ("stores", "device", "store", "told"),
    [
        (STORES, 15, "device", r"needs 18.00 GiB of 15.00 GiB.*set gradients.store to host"),
        (STORES, 5, "device", r"the most are weights, 10.00 GiB: share them out"),
        (SKETCHED, 5, "recompute", r"needs 11.00 GiB of 5.00 GiB"),
        ({}, 5, "auto", r"needs 10.00 GiB of 5.00 GiB"),
    ],
)
def test_what_does_not_fit_says_what_would_help(stores, device, store, told):
    plan(stores, 80, 80).check(store)
    with pytest.raises(ConfigError, match=rf"(?s)^does not fit: .*{told}"):
        plan(stores, device, 80).check(store)


def test_on_cpu_device_and_host_are_one_memory():
    assert not plan(STORES, 15, 80, shared=True).fits("host")
    assert plan(STORES, 21, 21, shared=True).fits("host")


def test_the_plan_counts_the_shapes_of_the_run(random_model):
    settings = {
        "model": {"path": random_model, "lora_rank": 2, "lora_targets": ["q_proj"]},
        "rollout": {"prompts_per_step": 5, "group_size": 4},
        "gradients": {"sketch": "sparse", "sketch_dim": 100, "dtype": "bfloat16"},
    }
    config = parse_config(settings)
    policy = load_policy(config.model, seed=0)
    stores = plan_memory(config, policy, ranks=2, capacity=Capacity(GIB, GIB)).stores
    samples, parameters = 3 * 4, 2 * 2 * (32 + 32)  # on the busier rank; 2 layers, A and B
    assert stores["device"] == Capacity(samples * (2 * parameters + 4 * 100), 0)
    assert samples * 2 * parameters == 6144  # pinned, as a power of two
    assert stores["host"] == Capacity(samples * 4 * 100, 8192)
    assert stores["recompute"] == Capacity(samples * 4 * 100 + 4 * parameters, 0)
    settings["gradients"]["sketch"] = "rademacher"  # all gradients wait: they fit
    stores = plan_memory(parse_config(settings), policy, 2, Capacity(GIB, GIB)).stores
    assert stores["recompute"] == Capacity(samples * 4 * 100 + 4 * parameters * (1 + samples), 0)
    exact = config.model_copy(update={"gradients": type(config.gradients)()})
    assert "recompute" not in plan_memory(exact, policy, 2, Capacity(GIB, GIB)).stores


def kept_bytes(folder, layers: int, dtype: str, width: int, mlp: int) -> float:
    """Of a token, for the backward pass: all that autograd saves, each memory once."""
    config = Qwen2Config(
        vocab_size=99,
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=2,
    )
    Qwen2ForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(folder)
    model = {"path": str(folder), "lora_rank": 4, "lora_targets": "all-linear", "dtype": dtype}
    policy = load_policy(parse_config({"model": model}).model, seed=0)
    weights = {p.untyped_storage().data_ptr() for p in policy.parameters()}
    saved: dict[int, torch.Tensor] = {}  # kept alive, so that no address comes twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        policy(input_ids=torch.arange(64).view(2, 32), use_cache=False, logits_to_keep=1)
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values()) / 64


@pytest.mark.parametrize(("dtype", "number"), [("float32", 4), ("bfloat16", 2)])
@pytest.mark.parametrize(("width", "mlp"), [(256, 256), (128, 1024)])
def test_the_plan_counts_what_a_layer_keeps_of_a_token(dtype, number, width, mlp, tmp_path):
    three, two = (kept_bytes(tmp_path / str(n), n, dtype, width, mlp) for n in (3, 2))
    planned = number * (KEPT_OF_WIDTH * width + KEPT_OF_MLP * mlp)
    assert 0.7 * planned < three - two < 1.05 * planned


def test_the_width_of_an_mlp_by_all_its_names():
    assert mlp_width(Qwen2Config(hidden_size=8, intermediate_size=20)) == 20
    assert mlp_width(GPT2Config(n_embd=8)) == 32
    experts = {"num_experts_per_tok": 4, "moe_intermediate_size": 10, "intermediate_size": 3}
    assert mlp_width(Qwen2MoeConfig(**experts, shared_expert_intermediate_size=5)) == 45
    assert mlp_width(MixtralConfig(intermediate_size=7, num_experts_per_tok=2)) == 14


def test_what_is_pinned_is_a_power_of_two():
    assert [pinned(count) for count in (0, 1, 4096, 4097)] == [0, 1, 4096, 8192]


def test_the_weights_that_a_rank_holds_at_zero_3(random_model, tmp_path):
    """Its part, and what is gathered at a time: all, where the policy itself samples."""
    zero = {"stage": 3, "stage3_max_live_parameters": 1000}
    (tmp_path / "zero3.json").write_text(json.dumps({"zero_optimization": zero}))
    settings = {"model": {"path": random_model, "lora_rank": 2}}
    policy = load_policy(parse_config(settings).model, seed=0)
    sizes = [4 * p.numel() for p in policy.parameters() if not p.requires_grad]

    def held(sampler: str, stage: int) -> list[int]:
        own = {"deepspeed": str(tmp_path / "zero3.json")} if stage == 3 else {}
        own["rollout"] = {"sampler": sampler}
        needs = plan_memory(parse_config(settings | own), policy, 4, Capacity(GIB, GIB)).needs
        return [count for name, count in needs.items() if name.startswith("weights")]

    assert held("server", 2) == held("hf", 2) == [sum(sizes)]
    assert held("server", 3) == [sum(sizes) // 4, 4 * 1000 + max(sizes)]
    assert held("hf", 3) == [sum(sizes) // 4, sum(sizes)]
    (tmp_path / "own.py").write_text(OWN_SAMPLERS)
    assert held(f"{tmp_path / 'own.py'}:Shares", 3) == held("hf", 3)
    assert held(f"{tmp_path / 'own.py'}:Beside", 3) == held("server", 3)


def test_weights_in_four_bits_are_whole_while_they_load(random_model, tmp_path):
    """At ZeRO 3 the engine shares them out; beside an engine of the user's, that is the most."""
    (tmp_path / "own.py").write_text(OWN_SAMPLERS)
    zero = {"stage": 3, "stage3_max_live_parameters": 0}
    (tmp_path / "zero3.json").write_text(json.dumps({"zero_optimization": zero}))

    def planned(**changes) -> MemoryPlan:
        settings = {
            "model": {"path": random_model, "lora_rank": 2, "load_in_4bit": True} | changes,
            "deepspeed": str(tmp_path / "zero3.json"),
            "rollout": {"sampler": f"{tmp_path / 'own.py'}:Beside", "prompts_per_step": 1},
        }
        config = parse_config(settings)
        policy = unloaded_policy(config.model)
        whole = sum(p.numel() * p.element_size() for p in policy.parameters())
        there = Capacity(int(whole / 0.9) - 100, GIB)
        plan = plan_memory(config, policy, 64, there)
        assert plan.loading in (0, whole)
        return MemoryPlan({"weights": whole // 64}, {}, there, plan.loading)

    planned(load_in_4bit=False).check("device")
    with pytest.raises(ConfigError, match=r"^does not fit: .*whole on each rank while they load"):
        planned().check("device")
    assert "before that, as weights in 4 bits load" in planned().told("device")


@pytest.mark.parametrize(("shared", "row"), [(True, "the sampler"), (False, "larger of training")])
def test_vllm_is_in_the_plan_and_asleep_on_gpus(random_model, shared, row):
    settings = {"model": {"path": random_model, "lora_rank": 2}, "rollout": {"vllm_cache_gib": 3.0}}
    policy = load_policy(parse_config(settings).model, seed=0)
    capacity = Capacity(GIB, GIB, shared)

    def needs(sampler: str) -> dict[str, int]:
        settings["rollout"]["sampler"] = sampler
        return plan_memory(parse_config(settings), policy, 1, capacity).needs

    of_vllm = next(count for name, count in needs("vllm").items() if row in name)
    assert 3 * GIB < of_vllm < (3.1 if shared else 3.2) * GIB
    line = next(name for name in needs("vllm") if row in name)
    assert line.endswith("(rollout.vllm_cache_gib)")  # which moves it
    stays = [count for name, count in needs("vllm").items() if "the sampler" in name]
    assert stays == [of_vllm if shared else colocated.GRAPHS]
    assert max(needs("server").values()) < GIB


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeeds_buckets_hold_what_is_trained(stage, random_model, tmp_path):
    """Its own default is a bucket of two gigabytes, whatever is trained."""
    given = tmp_path / "given.json"
    given.write_text(
        json.dumps({"zero_optimization": {"stage": stage, "reduce_bucket_size": 12345}})
    )
    sizes = []
    for file in (f"ds_configs/zero{stage}.json", str(given)):
        config = parse_config(
            {
                "model": {"path": random_model, "lora_rank": 2},
                "deepspeed": file,
                "train": {"output_dir": str(tmp_path)},
            }
        )
        policy = load_policy(config.model, seed=0)
        trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
        engine = CapoEngine(policy, config, optimizer_steps=1, monitor_dir=tmp_path)._engine
        sizes.append(engine.zero_reduce_bucket_size())
    assert sizes == [trained, 12345]
    assert engine.zero_allgather_bucket_size() == trained
