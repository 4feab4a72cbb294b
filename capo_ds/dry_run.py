"""What a run would be: settings, ranks, estimated memory and communication, without running it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import torch
import yaml
from peft import PeftModel

from capo_ds.config import Config, ConfigError
from capo_ds.cost.cluster import Cluster, load_cluster
from capo_ds.cost.forecast import forecast, table
from capo_ds.cost.measure import check_measurable, measure_cluster
from capo_ds.cost.step import Shape, Step
from capo_ds.distributed import comm
from capo_ds.distributed.deepspeed_json import read_deepspeed_json, zero_stage
from capo_ds.distributed.engine import CapoEngine
from capo_ds.distributed.zero import parameter_count, rounds
from capo_ds.memory import Capacity, MemoryPlan, plan_memory, plan_on_all_ranks, readable
from capo_ds.preparation import prepare
from capo_ds.rehearsal import Passes, rehearse
from capo_ds.rollout.base import SamplerRun
from capo_ds.rollout.choose import check_sampler
from capo_ds.run_folder import check_resume
from capo_ds.tasks.prompts import encode

OPTIMIZER = "optimizer: gradient reduced, factors handed round"


def dry_run(
    config: Config,
    nodes: int | None = None,
    cluster: str | None = None,
    response: int | None = None,
) -> None:
    """Print it on rank 0. Loads model and data as the run would, and writes no file; on all ranks.

    nodes: machines of a forecast, which there is none of without. cluster: the file of their rates;
    None: measure these. response: tokens of a response there; None: as many as may be.

    Raises:
        ConfigError: on all ranks, for whatever the run would refuse.
    """
    with comm.together("reading the cluster's rates"):
        known = _known(nodes, cluster, response)
        if response and response > config.rollout.max_new_tokens:
            raise ConfigError(
                f"--response-tokens {response}: more than rollout.max_new_tokens "
                f"({config.rollout.max_new_tokens}); raise that, or take fewer"
            )
        if known and nodes:
            known.check(nodes, config.gradients.sketch)
    ready = prepare(config, dry=True)
    policy = ready.policy
    if nodes is None:  # a forecast goes on with nothing
        check_resume(config)
    read_deepspeed_json(config.deepspeed)
    sampling = SamplerRun(config, policy, ready.tokenizer, "dry", loads=False, dry=True)
    with comm.together("looking for the sampler"):
        check_sampler(sampling)
    prompts = encode(ready.tokenizer, ready.train_problems[:2])
    rehearse(config, policy, prompts, _passes(config, policy))
    plan = plan_on_all_ranks(config, policy)
    if nodes is None:  # else these ranks need not fit what other machines do
        plan.choose(config.gradients.store)
    ranks = comm.gather(_this_rank(config))
    foretold = foretell(sampling, nodes, known, response) if nodes else []
    if not comm.is_main():
        return
    rows = [yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)]
    rows += [f"problems: {len(ready.train_problems)} for training, {ready.left_out} too long"]
    rows += ["ranks", *(f"  {number}: {rank}" for number, rank in enumerate(ranks))]
    rows += _memory(plan, config.gradients.store)
    if not nodes:  # the forecast counts them for its ranks
        sent = bytes_per_step(config, _trainable(policy), comm.world_size())
        rows += [f"sent by a rank per step, at most: {readable(sum(sent.values()))}"]
        rows += [f"  {readable(count):>10}  {name}" for name, count in sent.items()]
    print("\n".join([*rows, *foretold]), flush=True)


def _passes(config: Config, policy: PeftModel) -> Passes | None:
    """At ZeRO 3 an engine gathers the weights of each pass; it writes nothing."""
    if zero_stage(read_deepspeed_json(config.deepspeed)) < 3:
        return None
    silent = config.model_copy(update={"train": config.train.model_copy(update={"report_to": []})})
    engine = CapoEngine(policy, silent, 1, Path(config.train.output_dir))
    return Passes(engine.whole, engine.end_of_pass, engine.lockstep)


def _memory(plan: MemoryPlan, wanted: str) -> list[str]:
    """wanted: gradients.store."""
    rows = [
        f"memory per rank, estimated: {readable(plan.needed)} of {readable(plan.capacity.device)}"
    ]
    rows += [f"  {readable(count):>10}  {name}" for name, count in plan.needs.items()]
    if plan.stores:
        try:
            chosen = f"chosen: {plan.choose(wanted)}"
        except ConfigError:  # which a run raises, and says what helps
            chosen = "none fits"
        rows += [f"  gradients: {plan.describe_stores()}; {chosen}"]
    return rows


def _known(nodes: int | None, cluster: str | None, response: int | None) -> Cluster | None:
    """The rates of the file. Raises `ConfigError`."""
    if nodes is None and (cluster or response):
        raise ConfigError("--cluster and --response-tokens are of a forecast; add --nodes K")
    return load_cluster(cluster) if cluster else None


def foretell(
    sampling: SamplerRun, nodes: int, known: Cluster | None, response: int | None
) -> list[str]:
    """Lines of the forecast for so many machines (all ranks). Raises `ConfigError`."""
    config, policy = sampling.config, sampling.policy
    cluster = known
    if cluster is None:
        hosts = comm.gather(socket.gethostname())
        with comm.together("looking at the machines"):
            check_measurable(hosts, nodes)
        with comm.collective("measuring the cluster"):
            cluster = measure_cluster(sampling, hosts)
    ranks, tokens = nodes * cluster.ranks, response or config.rollout.max_new_tokens
    on_cpu = cluster.backend == "gloo"
    capacity = Capacity(int(cluster.memory), int(cluster.host_memory), on_cpu)
    plan = plan_memory(config, policy, ranks, capacity)
    step = Step(config, Shape.of(policy, config.model.dtype), ranks, tokens)
    title = f"machines: {nodes} of {cluster.ranks} ranks, N = {step.samples} samples an update"
    rows = [f"{title}, {tokens} tokens a response", *table(forecast(step, cluster)).splitlines()]
    rows += _memory(plan, config.gradients.store)
    if known is None:
        lacks = "" if cluster.between else ", which lacks `between`"
        rows += [f"rates, as measured here (a file for --cluster{lacks}):"]
        rows += [cluster.text().rstrip()]
    return rows


def bytes_per_step(config: Config, parameters: int, ranks: int) -> dict[str, int]:
    """Bytes that the busiest rank sends in a step, by purpose, if every sample has a gradient.

    ZeRO 3's gathering of weights and the sampler's new adapter come on top.
    """
    rollout, gradients, minibatches = config.rollout, config.gradients, config.objective.minibatches
    updates = config.objective.epochs * minibatches
    prompts = -(-rollout.prompts_per_step // minibatches)
    samples = prompts * rollout.group_size
    mine = min(-(-rollout.prompts_per_step // ranks), prompts) * rollout.group_size
    stage = zero_stage(read_deepspeed_json(config.deepspeed))
    sent = {OPTIMIZER: rounds(stage) * 4 * parameters}

    if config.uses_per_sample_gradients:
        sketched = gradients.sketch != "none"
        columns = 4 * gradients.sketch_dim
        if not sketched:
            columns = getattr(torch, gradients.dtype).itemsize * parameters
        sent["Gram matrix: columns exchanged (gradients.sketch)"] = mine * columns
        if sketched:
            sent["true norms of g_0 and dg"] = 2 * 4 * parameters
    shares = {name: count * (ranks - 1) // ranks for name, count in sent.items()}
    if config.uses_per_sample_gradients and ranks > 1:
        shares["Gram matrix: partial sums to rank 0"] = 8 * samples * (samples + 1) // 2
    return {name: count * updates for name, count in shares.items()}


def _this_rank(config: Config) -> str:
    """Where it runs, and its share of the rollout."""
    device = comm.device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    prompts = len(comm.shard(list(range(config.rollout.prompts_per_step))))
    return (
        f"{socket.gethostname()}, local rank {os.environ['LOCAL_RANK']}, {device} ({name}), "
        f"{torch.get_num_threads()} threads, {prompts} prompts = "
        f"{prompts * config.rollout.group_size} samples a step"
    )


def _trainable(policy: PeftModel) -> int:
    return sum(parameter_count(p) for p in policy.parameters() if p.requires_grad)
