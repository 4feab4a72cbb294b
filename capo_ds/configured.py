"""The parts that a config names, made; each where the run needs it, and all of them in `check`."""

from __future__ import annotations

from collections.abc import Callable

from capo_ds.aggregation import Aggregator, own_aggregator
from capo_ds.aggregation.given import Choices
from capo_ds.aggregation.update import Solver
from capo_ds.config import Config, ConfigError
from capo_ds.config.method import GradientsConfig
from capo_ds.gradients.sketch import Sketch
from capo_ds.objective import make_objective
from capo_ds.own_code import place
from capo_ds.parts import MARK
from capo_ds.plugins import find_part, make_part, what
from capo_ds.rollout.choose import sampler_maker
from capo_ds.tasks.functions import OURS
from capo_ds.tasks.rewards import KEY as REWARDS
from capo_ds.tasks.verdicts import verdict_of

SEED = "seed"  # an argument that an aggregator gets if it has it: of this update


def check(config: Config) -> None:
    """Raises `ConfigError` for a part that is not there, or options that it does not take."""
    make_aggregator(config)
    make_objective(config.objective)
    if config.gradients.sketch != "none":
        _sketch(config.gradients)
    sampler_maker(config)
    for section, entries in (
        ("task", config.task.entries),
        ("evaluation.benchmarks", config.evaluation.benchmarks),
    ):
        for entry in entries:
            find_part("task", f"{section}.name", entry.name, entry.options, given=("wanted",))
            verdict_of(f"{section}.verdict", entry, task=None)
    for entry in config.reward.functions:
        find_part("reward", REWARDS, entry.function, entry.options, given=OURS, columns=True)


def make_solver(config: Config) -> Solver:
    """The aggregator as the config has it. Raises `ConfigError`."""
    options = {}
    if config.aggregator in config.aggregators_with_sections():
        options = getattr(config, config.aggregator).model_dump()
    choices = Choices(**config.program.model_dump(exclude={"blocks"}))
    aggregator = make_aggregator(config)
    return Solver(config.aggregator, options, choices, config.measure_heldout, own=aggregator)


def make_aggregator(config: Config) -> Aggregator:
    """The function from a `GramProblem`, with `aggregator_options` in it. Raises `ConfigError`."""
    name = config.aggregator
    aggregator = make_part(
        "aggregator", "aggregator", name, config.aggregator_options, first=1, given=(SEED,)
    )
    return own_aggregator(name, aggregator) if MARK in name else aggregator


def sketches(
    settings: GradientsConfig, shapes: list[tuple[int, int]]
) -> Callable[[int], Sketch] | None:
    """What makes the sketch of a seed, for factors of these shapes (o, i); None without sketches.

    Raises:
        ConfigError: no such sketch, or none for these shapes.
    """
    if settings.sketch == "none":
        return None
    key, make = "gradients.sketch", _sketch(settings)

    def sketch(seed: int) -> Sketch:
        return make(shapes, settings.sketch_dim, seed)

    try:
        made = sketch(0)
    except Exception as error:
        told = f"{key}: {settings.sketch}: {what(error)}{place(error)}"
        raise ConfigError(told) from error
    if not isinstance(made, Sketch):
        raise ConfigError(
            f"{key}: {settings.sketch} must give a capo_ds.gradients.sketch.Sketch, and gives a "
            f"{type(made).__name__}"
        )
    return sketch


def _sketch(settings: GradientsConfig) -> Callable[..., Sketch]:
    """The sketch's class with its options in it. Raises `ConfigError`."""
    return find_part(
        "sketch",
        "gradients.sketch",
        settings.sketch,
        settings.sketch_options,
        given=("shapes", "dim", SEED),
    )
