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
from capo_ds.config import ConfigError, RewardConfig, TaskConfig, config_reference, parse_config
from capo_ds.parts import BUILT_IN, at, built_in, names, shortest
from capo_ds.rollout.base import SamplerBytes, SamplingShapes
from capo_ds.rollout.choose import sampler_bytes
from capo_ds.tasks import Judge, Scorer, load_problems, score

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
    return problem.average + size * np.random.default_rng(seed).normal(size=problem.count)

def longer(problem):
    """g_0 + ||g_0|| g_0 / ||g_0||."""
    weights = problem.average
    return Aggregation(2 * weights, weights, base=weights, average=weights, radius=1.0,
                       on_boundary=True, report={"length": np.float32(2)})

def half_done(problem):
    return Aggregation(problem.average, on_boundary=True)

@dataclass
class Quantile:
    q: float
    kind: Literal["low", "high"] = "low"

    def __call__(self, problem):
        return problem.average * (self.q if self.kind == "low" else 1 - self.q)

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
            (
                ":shares",
                {"positve": 1},
                r"aggregator_options\.positve: .*did you mean positive",
            ),
            (":noisy", {"size": 1, "seed": 3}, r"aggregator_options\.seed: .*it has size"),
            (":noisy", {"size": "1"}, r"aggregator_options\.size: bad value '1'"),
            (":noisy", {}, r"aggregator_options\.size: .* needs it"),
            (":Quantile", {"q": 1, "kind": "mid"}, r"aggregator_options\.kind: bad value 'mid'"),
            (
                ":Quantile",
                {"q": "three", "foo": 1, "kind": "mid"},
                r"options\.foo: .*no such option.*\n.*options\.q: bad.*\n.*options\.kind: bad",
            ),
            (":noisy", {"foo": 1}, r"options\.foo: .*\n.*options\.size: .*needs it"),
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
        ("name", "expected"), [("hf", 1000 + 4 * 50 * 16), ("server", 0), (":Quiet", 3000)]
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


TASKS = '''
from dataclasses import dataclass
from capo_ds.tasks import Problem, Verdict

@dataclass
class Words:
    """Say a word as often as asked."""

    word: str = "so"
    limit: int = 4

    def __call__(self, wanted):
        first = 0 if wanted.split == "train" else 100
        numbers = range(first, first + (wanted.limit or self.limit))
        return [Problem(f"Say {self.word} {n} times.", str(n), columns={"n": n}) for n in numbers]

    def verdict(self, completions, problems):
        for completion, problem in zip(completions, problems):
            said = completion.split()
            yield None if set(said) - {self.word} else len(said) == int(problem.answer)

def plain(wanted):
    return [Problem("1+1?", "2"), Problem("2+2?", "4")]

def empty(wanted):
    return []

def no_text(wanted):
    return [Problem(3, "2")]

def texts(wanted):
    return ["1+1?"]

def broken(wanted):
    return 1 / 0

def last_number(completions, problems, judge, worth: float = 2.0):
    import re
    given = [(re.findall(r"[0-9]+", text) or [""])[-1] for text in completions]
    same = judge.compare([(a, p.answer) for a, p in zip(given, problems)])
    return [Verdict(worth * (s.value == "equal"), True, s.value == "equal", s) for s in same]

def numbers(completions, problems):
    return [1.0] * len(completions)

def short(completions, problems):
    return [True]

def lengths(completions, verdicts, scale: float = 1.0, n=None):
    return [scale * len(text) * verdict.correct for text, verdict in zip(completions, verdicts)]
'''


class TestTasks:
    @pytest.fixture
    def own(self, tmp_path):
        file = tmp_path / "tasks_of_mine.py"
        file.write_text(TASKS)
        return lambda name: f"{file}:{name}"

    @pytest.fixture(scope="class")
    def judge(self):
        judge = Judge(5.0, 1)
        yield judge

    def test_it_brings_problems_and_verdict(self, own, judge):
        settings = TaskConfig(name=own("Words"), options={"word": "la"}, test_problems=2)
        train, test = load_problems(settings, "train"), load_problems(settings, "test")
        assert len(train) == 4 and [problem.answer for problem in test] == ["100", "101"]
        assert train[3].source == "Words"
        words = [v.word for v in score(["la la la", "la", "lo"], [train[3]] * 3, judge)]
        assert words == ["right", "wrong", "unformatted"]

    def test_each_data_set_of_a_mixture_keeps_its_verdict(self, own, judge):
        entries = [
            {"name": own("Words"), "label": "words"},
            {"name": own("plain"), "label": "sums"},
            {"name": own("plain"), "label": "loose", "verdict": own("last_number")},
        ]
        problems = load_problems(TaskConfig(mixture=entries), "train")
        by = {p.source: p for p in problems}
        texts = [r"\boxed{4}", "so so so", "is 4"]
        posed = [by["sums"], by["words"], by["loose"]]
        expected = {"sums": 1.0, "words": 1.0, "loose": 2.0}
        found = score([*texts, *texts], [*posed, *reversed(posed)], judge)
        assert [v.reward for v in found[:3]] == list(expected.values())
        # In the other order: "is 4" is no box, "so so so" still right, a box has a last number.
        assert [v.reward for v in found[3:]] == [2.0, 1.0, -1.0]

    def test_a_verdict_with_options_for_a_data_set_that_ships(self, own, judge):
        settings = TaskConfig(
            train_problems=1, verdict=own("last_number"), verdict_options={"worth": 3}
        )
        (problem,) = load_problems(settings, "train")
        assert score([f"it is {problem.answer}"], [problem], judge)[0].reward == 3.0
        (boxed,) = load_problems(TaskConfig(train_problems=1, verdict="boxed"), "train")
        assert boxed.verdict is None

    @pytest.mark.parametrize(
        ("settings", "told"),
        [
            ({"name": "empty"}, "task.name: .*empty: it gives no train problems"),
            ({"name": "texts"}, "task.name: .*texts: train problem 0 is no .*Problem"),
            (
                {"name": "no_text"},
                "no_text: train problem 0 is no .*Problem with prompt and answer",
            ),
            ({"name": "broken"}, "task.name: .*broken: its train problems: ZeroDivisionError"),
            (
                {"name": "Words", "options": {"wrd": 1}},
                "task.options.wrd: .*mean word.* word",
            ),
            ({"name": "plain", "verdict": "nowhere"}, "task.verdict: .*no function 'nowhere'"),
        ],
    )
    def test_what_is_no_task(self, own, settings, told):
        settings = {k: own(v) if isinstance(v, str) else v for k, v in settings.items()}
        with pytest.raises(ConfigError, match=told):
            load_problems(TaskConfig(**settings), "train")

    @pytest.mark.parametrize(
        ("name", "told"), [("numbers", "1.0 is no verdict"), ("short", "1 verdicts on 2")]
    )
    def test_what_is_no_verdict(self, own, judge, name, told):
        problems = load_problems(TaskConfig(name=own("plain"), verdict=own(name)), "train")
        with pytest.raises(RuntimeError, match=f"{name}: {told}"):
            score(["4", "4"], problems, judge)

    @pytest.mark.parametrize("name", ["rewards.py", "rulee", "json:loads"])
    def test_a_reward_function_is_of_the_table_or_a_file(self, name):
        with pytest.raises(
            ConfigError, match=r"functions\.0\.function: .*among rule, FILE\.py:NAME"
        ):
            parse_config({"reward": {"functions": [{"function": name}]}})

    def test_a_reward_function_gets_options_and_verdicts(self, own, judge):
        functions = [
            {"function": "rule"},
            {"function": own("lengths"), "options": {"scale": 0.5}, "weight": 2.0},
        ]
        scorer = Scorer(RewardConfig(functions=functions), judge)
        problems = load_problems(TaskConfig(name=own("plain")), "train")
        scorer.check(problems)
        scores = scorer([r"\boxed{2}", "4"], problems)
        assert scores.rewards == [1.0 + 2 * 0.5 * 9, -1.0]
        with pytest.raises(ConfigError, match=r"reward\.functions\.options\.scale: bad value 'x'"):
            functions[1]["options"]["scale"] = "x"
            Scorer(RewardConfig(functions=functions), judge)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["rule", "x/mine.py:f"], ["rule", "mine.py:f"]),
        (["x/rew.py:f", "y/rew.py:f", "y/rew.py:g"], ["x/rew.py:f", "y/rew.py:f", "rew.py:g"]),
        (["/a/x/rew.py:f", "/b/x/rew.py:f"], ["a/x/rew.py:f", "b/x/rew.py:f"]),
        (["rew.py:f", "/b/rew.py:f"], ["rew.py:f", "b/rew.py:f"]),
    ],
)
def test_parts_of_one_name_are_told_apart_by_as_little_of_their_paths_as_will_do(names, told):
    assert list(shortest(names).values()) == told
