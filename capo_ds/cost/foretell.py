"""`--dry-run --nodes K`: what a step costs on so many machines, told before there are any."""

from __future__ import annotations

import socket

from peft import PeftModel

from capo_ds.capacity import Capacity
from capo_ds.config import Config, ConfigError
from capo_ds.cost.cluster import Cluster, load_cluster
from capo_ds.cost.forecast import forecast, table
from capo_ds.cost.measure import check_measurable, measure_cluster
from capo_ds.cost.shape import Shape
from capo_ds.cost.step import Step, step_of
from capo_ds.cost.unloaded import random_base, unloaded_policy
from capo_ds.distributed import comm
from capo_ds.facts import without_prompts
from capo_ds.memory import MemoryPlan, plan_memory
from capo_ds.models import load_policy
from capo_ds.rollout.base import check_room
from capo_ds.rollout.colocated import check_groups
from capo_ds.rollout.engine import check_precision
from capo_ds.weights import read_architecture


def foretell(
    config: Config,
    nodes: int,
    file: str | None = None,
    prompt: int | None = None,
    response: int | None = None,
) -> None:
    """Print it on rank 0; on all ranks. Reads neither data nor checkpoints, and of the model its
    config.json alone; only to measure with 4-bit weights they are loaded.

    nodes: machines. file: of their rates; None: measure these ranks. prompt, response: tokens of
    one; None: as many as may be.

    Raises:
        ConfigError: on all ranks, for what cannot be foretold, and after all is printed for what
            does not fit.
    """
    known = None
    with comm.together("reading the cluster's rates"):
        _check_lengths(config, prompt, response)
        if file:
            known = load_cluster(file)
            known.check(nodes, config.gradients.sketch)
    with comm.together("reading the model's config"):
        _check_room(config, prompt)
    policy, cluster = _measured(config, nodes) if known is None else (_unloaded(config), known)
    _check_sampler(config, nodes, cluster)
    ranks = nodes * cluster.ranks
    capacity = Capacity(int(cluster.memory), int(cluster.host_memory), cluster.backend == "gloo")
    plan = plan_memory(config, policy, ranks, capacity)
    store, refused = _fitting(plan, config.gradients.store)
    if comm.is_main():
        shape = Shape.of(policy, config.model.dtype)
        step = step_of(config, shape, store, ranks, prompt, response)
        rows = [*told(step, cluster), f"memory per rank, estimated: {plan.told(store)}"]
        if known is None:
            lacks = "" if cluster.between else ", which lacks `between`"
            rows += [f"rates, as measured here (a file for --cluster{lacks}):"]
            rows += [cluster.text().rstrip()]
        print("\n".join(rows), flush=True)
    if refused:
        raise refused


def _check_lengths(config: Config, prompt: int | None, response: int | None) -> None:
    asked = {
        "--prompt-tokens": (prompt, "max_prompt_tokens"),
        "--response-tokens": (response, "max_new_tokens"),
    }
    for flag, (count, key) in asked.items():
        if count and count > (most := getattr(config.rollout, key)):
            raise ConfigError(
                f"{flag} {count}: more than rollout.{key} ({most}); raise that, or take fewer"
            )


def _check_room(config: Config, prompt: int | None) -> None:
    """As a run refuses its longest prompt; here the bound, where it is not told."""
    rollout, architecture = config.rollout, read_architecture(config.model)
    longest = prompt or rollout.max_prompt_tokens
    try:
        check_room(architecture, longest, rollout.max_new_tokens)
    except ConfigError as error:
        if prompt:
            raise
        raise ConfigError(f"{error}; or say by --prompt-tokens how long yours are") from error


def _check_sampler(config: Config, nodes: int, cluster: Cluster) -> None:
    """What an engine inside every rank would refuse there."""
    if config.rollout.sampler == "vllm":
        check_groups(config, nodes * cluster.ranks)
        check_precision(config, cluster.backend == "nccl")


def _fitting(plan: MemoryPlan, wanted: str) -> tuple[str, ConfigError | None]:
    """The store, and what says that it does not fit."""
    try:
        store = plan.choose(wanted)
    except ConfigError:  # which a run raises; `check` tells what it needs
        store = next(iter(plan.stores))
    try:
        plan.check(store)
    except ConfigError as error:
        return store, error
    return store, None


def told(step: Step, cluster: Cluster) -> list[str]:
    """Lines: the ranks, what is assumed, seconds and bytes of a step by phase."""
    rollout, machines = step.config.rollout, step.ranks // cluster.ranks
    rows = [f"machines: {machines} of {cluster.ranks} ranks, N = {step.samples} samples an update"]
    rows += [_lengths(step), _busiest(step), *table(forecast(step, cluster)).splitlines()]
    if rollout.sampler != "hf":
        rows += [
            f"the rollout of sampler {rollout.sampler} is a lower bound: its weights are read once "
            "a token, and the cache"
        ]
    return rows


def _lengths(step: Step) -> str:
    """What is assumed."""
    assumed = {
        "prompts": (step.prompt, "max_prompt_tokens", "--prompt-tokens"),
        "responses": (step.response, "max_new_tokens", "--response-tokens"),
    }
    rows = []
    for what, (count, key, flag) in assumed.items():
        most = getattr(step.config.rollout, key)
        why = f"rollout.{key}" if count == most else f"{flag}; rollout.{key}: {most}"
        rows.append(f"{what} of {count} tokens ({why})")
    return f"  {', '.join(rows)}"


def _busiest(step: Step) -> str:
    """By which rank the step is counted, and how many have less to do, or nothing."""
    prompts = step.config.rollout.prompts_per_step
    told = f"  the busiest rank has {-(-prompts // step.ranks)} of {prompts} prompts"
    if step.config.objective.minibatches > 1:
        told += f", and {step.mine:.3g} samples of an update on average"
    if prompts > step.ranks and prompts % step.ranks:
        told += f"; {step.ranks - prompts % step.ranks} of the {step.ranks} ranks have one less"
    return told + without_prompts(step.config, step.ranks)


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
