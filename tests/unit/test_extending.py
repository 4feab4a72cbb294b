"""Every example of docs/extending.md does what the page says; a line in the table makes it ship."""

import copy

import numpy as np
import pytest
import torch
import yaml

from capo_ds import configured, parts
from capo_ds.aggregation import GramProblem
from capo_ds.config import ConfigError, ObjectiveConfig, parse_config
from capo_ds.objectives import Tokens
from capo_ds.parts import BUILT_IN, Part
from capo_ds.rollout.base import SamplerBytes, SamplingShapes
from capo_ds.rollout.choose import sampler_bytes
from capo_ds.tasks import Judge, Scorer, load_problems, score
from tests.extending import sections, write

SECTIONS = sections()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def judge():
    return Judge(5.0, 1)


def settings(kind):
    return parse_config(copy.deepcopy(SECTIONS[kind][2]))


def test_the_page_has_every_kind():
    assert SECTIONS.keys() == BUILT_IN.keys()


@pytest.mark.parametrize("kind", SECTIONS)
def test_the_settings_of_the_page_pass_the_check(folder, kind):
    configured.check(settings(kind))


def test_aggregator(folder):
    gradients = np.random.default_rng(0).normal(size=(10, 4)) + 0.5
    positive = np.arange(10) < 6
    problem = GramProblem(gradients @ gradients.T, positive, ~positive)
    aggregate = configured.make_aggregator(settings("aggregator"))
    coefficients = aggregate(problem).coefficients
    dropped = np.flatnonzero(coefficients == 0)
    assert set(dropped) == set(np.argsort(problem.q0)[:2])


def test_objective(folder):
    config = settings("objective").objective
    log_ratio = torch.linspace(-2, 2, 9, dtype=torch.float64)[None].expand(2, -1)
    log_probs = log_ratio.clone().requires_grad_()
    mask = torch.ones(2, 9, dtype=torch.bool)
    tokens = Tokens(log_probs, torch.zeros_like(log_probs), torch.tensor([2.0, -1.0]), mask)
    value = configured.make_objective(config)(tokens, config).value
    for row, (advantage, tau) in enumerate([(2.0, 1.0), (-1.0, 1.1)]):
        ratio = log_ratio[row].exp()
        expected = advantage * 4 / tau / (1 + (-tau * (ratio - 1)).exp())
        torch.testing.assert_close(value[row], expected)
    (gradient,) = torch.autograd.grad(value.sum(), log_probs)
    torch.testing.assert_close(gradient[:, 4], torch.tensor([2.0, -1.0]).double())  # ratio 1
    assert isinstance(config, ObjectiveConfig)


def test_sampler_says_what_memory_it_needs(folder):
    config = settings("sampler")
    shapes = SamplingShapes(config, 4, 10, 1000, 50, 10_000, on_cpu=True)
    assert sampler_bytes(config, shapes) == SamplerBytes(1000 + 4 * 50 * 16)


def test_sketch_is_unbiased(folder):
    torch.manual_seed(0)
    shapes = [(3, 5), (5, 2)]
    rows = [torch.randn(2, *shape) for shape in shapes]
    make = configured.sketches(settings("sketch").gradients, shapes)
    sketched = torch.stack([make(seed)(rows) for seed in range(400)])
    flat = torch.cat([part.flatten(1) for part in rows], 1)
    products = sketched @ sketched.transpose(1, 2)
    error = (products.mean(0) - flat @ flat.T).abs()
    assert (error < 5 * products.std(0) / 20).all()
    assert sketched.shape == (400, 2, 256)


def test_task_and_verdict(folder, judge):
    problems = load_problems(settings("task").task, "train")
    sums, sorting = problems[0], problems[-1]
    assert [sums.source, sorting.source] == ["sums", "sorting"] and len(problems) == 100
    assert len(sorting.answer.split()) == 4
    texts = [rf"\boxed{{{sums.answer}}}", sorting.answer, "9 9", f"I say {sorting.answer}"]
    words = [v.word for v in score(texts, [sums, *[sorting] * 3], judge)]
    assert words == ["right", "right", "wrong", "unformatted"]


def test_verdict(folder, judge):
    problem = load_problems(settings("verdict").task, "test")[0]
    texts = [f"it is {problem.answer}.", "it is 0 and 1000000", "no idea"]
    words = [v.word for v in score(texts, [problem] * 3, judge)]
    assert words == ["right", "wrong", "unformatted"]


def test_reward(folder, judge):
    problem = load_problems(settings("reward").task, "test")[0]
    scorer = Scorer(settings("reward").reward, judge)
    text = rf"\boxed{{{problem.answer}}}"
    rewards = scorer([text, "4"], [problem] * 2).rewards
    assert rewards == pytest.approx([1 - 0.002 * len(text), -1.0])


PLACES = {
    "aggregator": "trimmed",
    "objective": "sapo",
    "sampler": "Recorded",
    "sketch": "Entries",
    "task": "Sorting",
    "verdict": "last_number",
    "reward": "brief",
}


@pytest.mark.parametrize("kind", PLACES)
def test_one_line_makes_it_ship(folder, monkeypatch, kind):
    """With the line in the table the settings name it, its options are checked, and it is made."""
    monkeypatch.syspath_prepend(str(folder))
    file, _, told = SECTIONS[kind]
    memory = "capo_ds.rollout.hf:memory" if kind == "sampler" else ""
    line = Part(f"{file.removesuffix('.py')}:{PLACES[kind]}", "made here", memory=memory)
    monkeypatch.setitem(BUILT_IN[kind], "new", line)
    text = yaml.safe_dump(told).replace(f"{file}:{PLACES[kind]}", "new")
    config = parse_config(yaml.safe_load(text))
    configured.check(config)
    assert "new (made here)" in parts.choices(kind) and "new" in parts.names(kind)
    if kind == "sampler":
        shapes = SamplingShapes(config, 4, 10, 1000, 50, 10_000, on_cpu=True)
        assert sampler_bytes(config, shapes) == SamplerBytes(1000 + 4 * 50 * 16)
    if kind == "task":
        assert load_problems(config.task, "train")[-1].source == "sorting"
    with pytest.raises(ConfigError, match="zzz: new has no such option"):
        configured.check(parse_config(with_option(yaml.safe_load(text))))


def with_option(told):
    """The settings with one option more wherever there are options."""
    if isinstance(told, list):
        return [with_option(inner) for inner in told]
    if not isinstance(told, dict):
        return told
    return {
        key: {**inner, "zzz": 1} if key.endswith("options") else with_option(inner)
        for key, inner in told.items()
    }
