"""Parts that ship and parts of the user's come in by one door."""

import ast
import inspect
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from capo_ds import configured
from capo_ds.aggregation.update import Samples
from capo_ds.config import ConfigError, config_reference, parse_config
from capo_ds.parts import BUILT_IN, at, built_in, names
from capo_ds.rollout.base import SamplerBytes, SamplingShapes
from capo_ds.rollout.choose import sampler_bytes

SOURCE = '''
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from capo_ds.aggregation import Aggregation
from capo_ds.gradients.sketch import Sketch

def shares(problem, positive: Annotated[float, Field(ge=0, le=1)] = 1.0):
    return np.where(problem.positive, positive, 1 - positive) / problem.count

def noisy(problem, seed, size: int):
    return problem.vanilla + size * np.random.default_rng(seed).normal(size=problem.count)

def longer(problem):
    """g_0 + ||g_0|| g_0 / ||g_0||."""
    weights = problem.vanilla
    return Aggregation(2 * weights, weights, base=weights, average=weights, radius=1.0,
                       on_boundary=True, report={"length": np.float32(2)})

def half_done(problem):
    return Aggregation(problem.vanilla, on_boundary=True)

@dataclass
class Quantile:
    q: float
    kind: Literal["low", "high"] = "low"

    def __call__(self, problem):
        return problem.vanilla * (self.q if self.kind == "low" else 1 - self.q)

class Strided(Sketch):
    """Every stride-th entry, in sums."""

    def __init__(self, shapes, dim, seed, stride: int = 1):
        super().__init__(shapes, dim, seed)
        self.stride = stride

    def project(self, index, gradients):
        rows = gradients.flatten(1).float()[:, :: self.stride][:, : self.dim]
        return rows.new_zeros(len(rows), self.dim).index_copy_(
            1, __import__("torch").arange(rows.shape[1]), rows)

def no_sketch(shapes, dim, seed):
    return shapes

class Quiet:
    collective, shares_policy = False, True

    def __init__(self, run, loudness: float = 0.0):
        self.run = run

    @staticmethod
    def memory(shapes):
        return 3 * shapes.cache
'''


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "mine_of_parts.py"
    file.write_text(SOURCE)

    def make(**settings):
        def own(value):
            if isinstance(value, dict):
                return {key: own(inner) for key, inner in value.items()}
            return f"{file}:{value[1:]}" if isinstance(value, str) and value[0] == ":" else value

        return parse_config(own(settings))

    return make


@pytest.mark.parametrize("kind", BUILT_IN)
def test_every_part_that_ships_is_there_and_in_the_settings_page(kind):
    reference = config_reference()
    for name, part in BUILT_IN[kind].items():
        assert callable(at(part.place)), name
        assert not part.memory or callable(at(part.memory))
    for told in names(kind):
        assert told in reference


def test_the_table_imports_nothing():
    import capo_ds.parts

    tree = ast.parse(Path(capo_ds.parts.__file__).read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert modules == {"__future__", "collections.abc", "importlib", "typing"}


def samples():
    gradients = np.random.default_rng(1).normal(size=(4, 6))
    gram = (gradients @ gradients.T)[None]
    return Samples(gram, np.array([1, -1, 1, -1]), np.array([0, 0, 1, 1]), 4)


def solve(config, seed=0):
    solver = configured.make_solver(config)
    return solver.solve(samples(), np.random.default_rng(0), seed=seed)


class TestAggregators:
    def test_options_reach_it(self, config):
        settings = config(aggregator=":shares", aggregator_options={"positive": 0.75})
        expected = np.array([0.75, 0.25, 0.75, 0.25]) / 4
        np.testing.assert_array_equal(solve(settings).coefficients[0], expected)

    def test_a_class_is_made_with_its_options(self, config):
        settings = config(aggregator=":Quantile", aggregator_options={"q": 0.25, "kind": "high"})
        np.testing.assert_array_equal(solve(settings).coefficients[0], np.full(4, 0.75 / 4))

    def test_the_seed_is_the_updates(self, config):
        settings = config(aggregator=":noisy", aggregator_options={"size": 2})
        first, again, other = (solve(settings, seed).coefficients for seed in (1, 1, 2))
        np.testing.assert_array_equal(first, again)
        assert np.all(first != other)
        drawn = 2 * np.random.default_rng(1).normal(size=4)
        np.testing.assert_allclose(first[0], 0.25 + drawn)

    def test_pcgrad_gets_its_seed_by_the_same_door(self, config):
        solver = configured.make_solver(config(aggregator="pcgrad"))
        assert "seed" in inspect.signature(solver.own).parameters
        assert (
            "seed"
            not in inspect.signature(
                configured.make_solver(config(aggregator="mgda")).own
            ).parameters
        )

    def test_one_that_gives_an_aggregation_gets_true_norms(self, config):
        solved = solve(config(aggregator=":longer"))
        assert solved.results[0].on_boundary
        assert solved.sketched_norms[0] == pytest.approx(solved.sketched_norms[1])
        label = next(key for key in solved.metrics if key.endswith("/length"))
        assert label == "mine_of_parts.py_longer/length" and solved.metrics[label] == 2.0

    def test_an_aggregation_without_its_direction(self, config):
        with pytest.raises(RuntimeError, match="half_done: xi: it must give 4 finite numbers"):
            solve(config(aggregator=":half_done"))

    def test_torchjds_options_are_checked_before_the_run(self, config):
        pytest.importorskip("torchjd")
        settings = config(aggregator="torchjd:CAGrad", aggregator_options={"c": 0.5})
        assert np.isfinite(solve(settings).coefficients).all()
        for options, told in (
            ({}, r"aggregator_options\.c: torchjd:CAGrad needs it"),
            ({"c": 0.5, "d": 1}, r"aggregator_options\.d: .*no such option; it has c"),
        ):
            with pytest.raises(ConfigError, match=told):
                configured.check(config(aggregator="torchjd:CAGrad", aggregator_options=options))

    @pytest.mark.parametrize(
        ("name", "options", "told"),
        [
            (":shares", {"positive": 2}, r"aggregator_options\.positive: bad value 2 .*equal to 1"),
            (":shares", {"positve": 1}, r"aggregator_options\.positve: .*it has positive"),
            (":noisy", {"size": 1, "seed": 3}, r"aggregator_options\.seed: .*it has size"),
            (":noisy", {"size": "1"}, r"aggregator_options\.size: bad value '1'"),
            (":noisy", {}, r"aggregator_options\.size: .* needs it"),
            (":Quantile", {"q": 1, "kind": "mid"}, r"aggregator_options\.kind: bad value 'mid'"),
            ("mgda", {"x": 1}, r"aggregator_options\.x: mgda has no such option; it has none"),
            ("torchjd:Nothing", {}, "aggregator: unknown aggregator 'torchjd:Nothing'"),
        ],
    )
    def test_what_does_not_fit_is_told_before_the_run(self, config, name, options, told):
        with pytest.raises(ConfigError, match=told):
            configured.check(config(aggregator=name, aggregator_options=options))

    def test_those_with_sections_have_their_options_there(self, config):
        with pytest.raises(ConfigError, match="the options of capo are the section capo"):
            config(aggregator="capo", aggregator_options={"radius": 1})


class TestSketches:
    def test_own_options(self, config):
        gradients = config(
            gradients={"sketch": ":Strided", "sketch_dim": 8, "sketch_options": {"stride": 2}}
        ).gradients
        sketch = configured.sketches(gradients, [(2, 4)])(7)
        rows = torch.arange(8.0).view(1, 2, 4)
        assert sketch.seed == 7
        assert sketch([rows]).tolist() == [[0, 2, 4, 6, 0, 0, 0, 0]]

    def test_those_that_ship_come_by_the_same_door(self, config):
        for name in names("sketch"):
            gradients = config(gradients={"sketch": name, "sketch_dim": 16}).gradients
            sketch = configured.sketches(gradients, [(2, 4)])(3)
            assert type(sketch) is built_in("sketch", name) and sketch.seed == 3

    @pytest.mark.parametrize(
        ("settings", "told"),
        [
            ({"sketch": ":Strided", "sketch_options": {"stride": 0.5}}, "sketch_options.stride"),
            ({"sketch": ":no_sketch"}, "gradients.sketch: .*no_sketch must give a .*Sketch"),
            ({"sketch": "dense"}, "gradients.sketch: bad value 'dense'; choose among rademacher"),
        ],
    )
    def test_what_is_no_sketch(self, config, settings, told):
        with pytest.raises(ConfigError, match=told):
            configured.sketches(config(gradients=settings).gradients, [(2, 4)])

    def test_one_that_does_not_fit_the_factors_is_told_at_the_start(self, config):
        gradients = config(gradients={"sketch": "outer", "sketch_dim": 3}).gradients
        with pytest.raises(ConfigError, match=r"gradients.sketch: outer: .*dim >="):
            configured.sketches(gradients, [(4, 9)])


class TestSamplers:
    def shapes(self, config):
        return SamplingShapes(config, 4, 10, 1000, 50, 10_000, on_cpu=True)

    @pytest.mark.parametrize(
        ("name", "expected"), [("hf", 1000 + 4 * 50 * 28), ("server", 0), (":Quiet", 3000)]
    )
    def test_memory_is_what_the_part_says(self, config, name, expected):
        settings = config(rollout={"sampler": name})
        assert sampler_bytes(settings, self.shapes(settings)) == SamplerBytes(expected)

    def test_options_are_checked(self, config):
        configured.check(config(rollout={"sampler": ":Quiet", "sampler_options": {"loudness": 1}}))
        for name, options in ((":Quiet", {"loud": 1}), ("hf", {"loudness": 1.0})):
            with pytest.raises(ConfigError, match=r"rollout\.sampler_options\.loud"):
                configured.check(config(rollout={"sampler": name, "sampler_options": options}))

    def test_one_without_its_methods(self, config):
        from capo_ds.rollout.choose import make_sampler

        run = SimpleNamespace(config=config(rollout={"sampler": ":Quiet"}))
        with pytest.raises(ConfigError, match=r"rollout\.sampler: .*Quiet has no method awake"):
            make_sampler(run, [[1]])
