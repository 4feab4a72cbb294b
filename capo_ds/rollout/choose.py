"""The sampler that the settings ask for, and what it needs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from capo_ds.config import Config, ConfigError
from capo_ds.parts import BUILT_IN, at
from capo_ds.plugins import find_part
from capo_ds.rollout.base import Sampler, SamplerBytes, SamplerRun, SamplingShapes
from capo_ds.rollout.engine import context_length
from capo_ds.rollout.probe import Probe

KEY = "rollout.sampler"
METHODS = ("awake", "sync", "sample")
EARLY = "ask"


def make_sampler(
    run: SamplerRun, prompts: list[list[int]], largest: Callable[[int], int] | None = None
) -> tuple[Sampler, Probe | None]:
    """The sampler, and the probe of its weights where it has its own.

    prompts: some of the task's, for the probe. largest: see `Probe`.
    Raises `ConfigError` if the sampler cannot be had.
    """
    config = run.config
    sampler = sampler_maker(config)(run)
    if missing := [name for name in METHODS if not callable(getattr(sampler, name, None))]:
        raise ConfigError(
            f"{KEY}: {config.rollout.sampler} has no method {missing[0]} (see "
            "capo_ds.rollout.base.Sampler)"
        )
    if config.rollout.ahead and not callable(getattr(sampler, EARLY, None)):
        raise ConfigError(
            f"rollout.ahead: {config.rollout.ahead} needs a sampler that can be asked early, and "
            f"{config.rollout.sampler} has no method {EARLY} (see "
            "capo_ds.rollout.base.EarlySampler); set it to 0, or rollout.sampler to process or "
            "server"
        )
    if getattr(sampler, "shares_policy", False):
        return sampler, None
    context = context_length(config, run.policy.config)
    return sampler, Probe(sampler, run.policy, prompts, context, config, largest)


def check_sampler(run: SamplerRun) -> None:
    """Raises the `ConfigError` that `make_sampler` would, without starting an engine; of a
    sampler of the user's, its options alone are looked at."""
    maker = sampler_maker(run.config)
    if run.config.rollout.sampler in BUILT_IN["sampler"]:
        maker(run)


def sampler_bytes(config: Config, shapes: SamplingShapes) -> SamplerBytes:
    """What the sampler takes of a rank's memory; of the user's, what its `memory` says, if any."""
    name = config.rollout.sampler
    if name in BUILT_IN["sampler"]:
        place = BUILT_IN["sampler"][name].memory
        return at(place)(shapes) if place else SamplerBytes()
    memory = getattr(_own(config), "memory", None)
    needed = memory(shapes) if memory else 0
    return needed if isinstance(needed, SamplerBytes) else SamplerBytes(int(needed))


def shares_policy(config: Config) -> bool:
    """Whether the sampler samples with the training model itself, and is no engine beside it; of
    the user's, as its class says."""
    if config.rollout.sampler in BUILT_IN["sampler"]:
        return config.rollout.sampler == "hf"
    return bool(getattr(_own(config), "shares_policy", False))


def _own(config: Config) -> Callable[..., Sampler]:
    """The user's class or function."""
    maker = sampler_maker(config)
    return maker.func if isinstance(maker, partial) else maker


def sampler_maker(config: Config) -> Callable[[SamplerRun], Sampler]:
    """What makes the sampler of a `SamplerRun`, with its options in it."""
    rollout = config.rollout
    return find_part("sampler", KEY, rollout.sampler, rollout.sampler_options, given=("run",))
