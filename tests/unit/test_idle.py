"""Keys that were set and change nothing are told, and no others."""

import numpy as np
import pytest
import yaml

from capo_ds.aggregation.classics import mean
from capo_ds.aggregation.given import Choices, given
from capo_ds.aggregation.problem import GramProblem
from capo_ds.config import RECIPES, Config, load_config, parse_config
from capo_ds.config.idle import RULES, idle_keys, idle_line


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_set_nothing_in_vain(path):
    assert idle_line(load_config(path)) is None


def test_the_rules_name_keys_that_there_are():
    for section, keys, because, _ in RULES:
        owner = Config.model_fields[section].annotation if section else Config
        assert set(keys.split()) <= set(owner.model_fields)
        for key in because.split():
            field, annotation = None, Config
            for part in key.split("."):
                field = annotation.model_fields[part]
                annotation = field.annotation


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"aggregator": "mean", "capo": {"radius": 0.5}, "cagrad": {"radius": 0.3}},
            {"aggregator: mean": ["capo.radius", "cagrad.radius"]},
        ),
        ({"program": {"norm_quantile": 0.4}}, {"program.norms: none": ["program.norm_quantile"]}),
        ({"program": {"norms": "clip", "norm_quantile": 0.4}}, {}),
        ({"measure_conflict": False}, {"aggregator: capo": ["measure_conflict"]}),
        (
            {"aggregator": "mean", "measure_conflict": False, "gradients": {"sketch": "sparse"}},
            {"measure_conflict: false": ["gradients.sketch"]},
        ),
        ({"gradients": {"sketch_dim": 64}}, {"gradients.sketch: none": ["gradients.sketch_dim"]}),
        (
            {"rollout": {"vllm_cache_gib": 2, "server_url": "http://a:1"}},
            {"rollout.sampler: hf": ["rollout.vllm_cache_gib", "rollout.server_url"]},
        ),
        ({"rollout": {"sampler": "vllm", "vllm_cache_gib": 2, "probe_bound": 0.1}}, {}),
        ({"rollout": {"sampler": "mine.py:sampler", "server_url": "http://a:1"}}, {}),
        (
            {"rollout": {"importance_cap": 3}},
            {"rollout.importance_correction: null": ["rollout.importance_cap"]},
        ),
        ({"rollout": {"sampler": "server", "ahead": 1, "importance_cap": 3}}, {}),
        (
            {"objective": {"clip_low": 0.2, "clip_high": 0.28}},
            {"objective.epochs: 1, objective.minibatches: 1": ["objective.clip_high"]},
        ),
        ({"objective": {"clip_high": 0.28, "minibatches": 2}}, {}),
        ({"objective": {"clip_high": 0.28, "ratio_to": "sampler"}}, {}),
        (
            {"capo": {"on_infeasible": "vanilla"}},
            {"capo.slack_price: 10.0": ["capo.on_infeasible"]},
        ),
        ({"capo": {"on_infeasible": "vanilla", "slack_price": ".inf"}}, {}),
        (
            {"task": {"name": "gsm8k", "levels": [1], "seed": 3}},
            {"task.name: gsm8k": ["task.levels"], "task.shuffle: false": ["task.seed"]},
        ),
        ({"task": {"path": "x", "seed": 3}}, {"task.name: arithmetic": ["task.path"]}),
        ({"task": {"name": "mine.py:task", "path": "x", "levels": [1]}}, {}),
        (
            {"evaluation": {"seed": 1, "benchmarks": [{"name": "math", "asks": "before"}]}},
            {
                "evaluation.temperature: 0.0": ["evaluation.seed"],
                "evaluation.benchmarks.0.name: math": ["evaluation.benchmarks.0.asks"],
            },
        ),
        (
            {"train": {"micro_batch_size": 4, "micro_batch_tokens": 512}},
            {"train.micro_batch_tokens: 512": ["train.micro_batch_size"]},
        ),
        ({"train": {"micro_batch_size": 4, "micro_batch_tokens": 512}, "warmup": {"seed": 1}}, {}),
        ({"model": {"adapter": "x", "lora_rank": 8}}, {"model.adapter: x": ["model.lora_rank"]}),
    ],
)
def test_what_is_idle_and_why(settings, expected):
    settings = yaml.safe_load(yaml.safe_dump(settings).replace("'.inf'", ".inf"))
    assert idle_keys(parse_config(settings)) == expected


def test_of_settings_that_a_run_has_written_down_those_at_their_defaults_are_not_meant():
    config = parse_config({"aggregator": "mean", "capo": {"radius": 0.1}})
    written = parse_config(config.model_dump(mode="json"))
    assert idle_keys(written) == {"aggregator: mean": ["capo.radius"]}
    assert idle_line(written) == "settings without effect here: capo.radius (aggregator: mean)"
    assert idle_line(parse_config(parse_config({}).model_dump(mode="json"))) is None


@pytest.mark.parametrize("norms", ["none", "clip", "unit"])
@pytest.mark.parametrize("average", ["mean", "geometric_median"])
def test_tasks_change_nothing_where_the_mean_is_applied(norms, average):
    rows = np.random.default_rng(0).normal(size=(12, 30))
    groups, signs = np.repeat(np.arange(3), 4), np.array([1, -1, 0, 1] * 3)
    problem = GramProblem(rows @ rows.T, signs > 0, signs < 0)
    found = []
    for tasks in ("sample", "group"):
        program = given(problem, groups, Choices(norms=norms, average=average, tasks=tasks))
        found.append(program.answer(mean(program.problem)).coefficients)
    np.testing.assert_allclose(*found, atol=1e-15)
