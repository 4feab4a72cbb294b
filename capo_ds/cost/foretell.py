"""`--dry-run --nodes K`: what a step costs on so many machines, told before there are any."""

from __future__ import annotations

import socket

import yaml
from peft import PeftModel

from capo_ds.config import Config, ConfigError
from capo_ds.cost.cluster import Cluster, load_cluster
from capo_ds.cost.forecast import forecast, table
from capo_ds.cost.measure import check_measurable, measure_cluster
from capo_ds.cost.shape import Shape
from capo_ds.cost.step import Step, step_of
from capo_ds.cost.unloaded import random_base, unloaded_policy
from capo_ds.distributed import comm
from capo_ds.memory import Capacity, plan_memory
from capo_ds.models import load_policy


def foretell(
    config: Config, nodes: int, file: str | None = None, response: int | None = None
) -> None:
    """Print it on rank 0; on all ranks. Reads neither data nor checkpoints, and of the model its
    config.json alone; only to measure with 4-bit weights they are loaded.

    nodes: machines. file: of their rates; None: measure these ranks. response: tokens of one; None:
    as many as may be.

    Raises:
        ConfigError: on all ranks, for what cannot be foretold.
    """
    known = None
    with comm.together("reading the cluster's rates"):
        if response and response > config.rollout.max_new_tokens:
            raise ConfigError(
                f"--response-tokens {response}: more than rollout.max_new_tokens "
                f"({config.rollout.max_new_tokens}); raise that, or take fewer"
            )
        if file:
            known = load_cluster(file)
            known.check(nodes, config.gradients.sketch)
    policy, cluster = _measured(config, nodes) if known is None else (_unloaded(config), known)
    if not comm.is_main():
        return
    rows = [yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)]
    rows += told(config, policy, cluster, nodes, response)
    if known is None:
        lacks = "" if cluster.between else ", which lacks `between`"
        rows += [f"rates, as measured here (a file for --cluster{lacks}):"]
        rows += [cluster.text().rstrip()]
    print("\n".join(rows), flush=True)


def told(
    config: Config, policy: PeftModel, cluster: Cluster, nodes: int, response: int | None
) -> list[str]:
    """Lines: the ranks, seconds and bytes of a step by phase, memory."""
    ranks = nodes * cluster.ranks
    capacity = Capacity(int(cluster.memory), int(cluster.host_memory), cluster.backend == "gloo")
    plan = plan_memory(config, policy, ranks, capacity)
    try:
        store, remark = plan.choose(config.gradients.store), ""
    except ConfigError as error:  # which a run raises
        store, remark = "device", f"none fits: {error}"
    step = step_of(config, Shape.of(policy, config.model.dtype), store, ranks, response)
    rows = [f"machines: {nodes} of {cluster.ranks} ranks, N = {step.samples} samples an update"]
    rows[0] += f", {step.response} tokens a response"
    rows += [_busiest(step), *table(forecast(step, cluster)).splitlines()]
    rows += [f"memory per rank, estimated: {plan.told(store)}"]
    return [*rows, remark] if remark else rows


def _busiest(step: Step) -> str:
    """By which rank the step is counted, and how many have less to do, or nothing."""
    prompts = step.config.rollout.prompts_per_step
    told = f"  the busiest rank has {-(-prompts // step.ranks)} of {prompts} prompts"
    if step.config.objective.minibatches > 1:
        told += f", and {step.mine:.3g} samples of an update on average"
    if step.idle:
        told += (
            f"; {step.idle} of the {step.ranks} ranks have none (raise rollout.prompts_per_step)"
        )
    elif prompts % step.ranks:
        told += f"; {step.ranks - prompts % step.ranks} of the {step.ranks} ranks have one less"
    return told


def _unloaded(config: Config) -> PeftModel:
    with comm.together("reading the model's config"):
        return unloaded_policy(config.model)


def _measured(config: Config, nodes: int) -> tuple[PeftModel, Cluster]:
    hosts = comm.gather(socket.gethostname())
    with comm.together("looking at the machines"):
        check_measurable(hosts, nodes)
    with comm.together("making the model"):
        base = random_base(config.model, comm.device())
        policy = load_policy(config.model, config.train.seed, comm.device(), base)
    with comm.collective("measuring the cluster"):
        return policy, measure_cluster(config, policy, hosts)
