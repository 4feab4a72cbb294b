"""The estimate of memory, and the choice of a store by it."""

import json

import pytest

from capo_ds.config import ConfigError, parse_config
from capo_ds.distributed.engine import CapoEngine
from capo_ds.memory import Capacity, MemoryPlan, plan_memory
from capo_ds.models import load_policy

GIB = 2**30
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
    assert stores["host"] == Capacity(samples * 4 * 100, samples * 2 * parameters)
    assert stores["recompute"] == Capacity(samples * 4 * 100 + 4 * parameters, 0)
    exact = config.model_copy(update={"gradients": type(config.gradients)()})
    assert "recompute" not in plan_memory(exact, policy, 2, Capacity(GIB, GIB)).stores


@pytest.mark.parametrize(("shared", "row"), [(True, "the sampler"), (False, "larger of training")])
def test_vllm_is_in_the_plan_and_asleep_on_gpus(random_model, shared, row):
    settings = {"model": {"path": random_model, "lora_rank": 2}, "rollout": {"vllm_cache_gib": 3.0}}
    policy = load_policy(parse_config(settings).model, seed=0)
    capacity = Capacity(GIB, GIB, shared)

    def needs(sampler: str) -> dict[str, int]:
        settings["rollout"]["sampler"] = sampler
        return plan_memory(parse_config(settings), policy, 1, capacity).needs

    of_vllm = next(count for name, count in needs("vllm").items() if row in name)
    assert 3 * GIB < of_vllm < 3.1 * GIB
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
