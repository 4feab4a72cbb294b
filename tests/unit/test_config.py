import json
import re
import runpy
from itertools import pairwise

import pytest
import yaml

from capo_ds.config import Config, ConfigError, config_reference, load_config, parse_config, reading
from capo_ds.distributed.deepspeed_json import (
    deepspeed_settings,
    ignored_lines,
    read_deepspeed_json,
)
from tests.conftest import REPOSITORY

RECIPES = sorted((REPOSITORY / "launchers" / "recipes").glob("*.yaml"))


@pytest.mark.parametrize(
    ("settings", "fragments"),
    [
        ({"capo": {"raduis": 1}}, ["capo.raduis", "1", "capo.radius"]),
        ({"radius": 1}, ["radius", "did you mean capo.radius"]),
        ({"capo": {"radius": "wide"}}, ["capo.radius", "'wide'", "number"]),
        ({"capo": {"radius": -1}}, ["capo.radius", "-1", "greater than or equal to 0"]),
        ({"capo": {"radius": float("nan")}}, ["capo.radius", "nan"]),
        ({"capo": 3}, ["capo", "3", "section"]),
        ({"train": {"steps": 1.5}}, ["train.steps", "1.5", "integer"]),
        ({"train": {"steps": True}}, ["train.steps", "True", "integer"]),
        ({"capo": {"radius": True}}, ["capo.radius", "True", "number"]),
        ({"objective": {"scale_advantages": "off"}}, ["objective.scale_advantages", "'off'"]),
        ({"optimizer": {"betas": [2.0, 0.9]}}, ["optimizer.betas.0", "2.0", "less than 1"]),
        ({"task": {"levels": [99]}}, ["task.levels.0", "99", "5"]),
        ({"warmup": {"styles": {"worked": -3}}}, ["warmup.styles", "-3"]),
        ({"aggregator": "meen"}, ["aggregator", "'meen'", "GRPO's is mean"]),
        ({"objective": {"minibatches": 65}}, ["objective.minibatches", "65", "lower it"]),
        ({"model": {"lora_targets": []}}, ["model.lora_targets", "at least 1"]),
        (
            {"gradients": {"store": "recompute"}},
            ["gradients.store", "recompute", "gradients.sketch"],
        ),
        ({"task": {"name": "custom", "path": "a.jsonl"}}, ["'custom'", "prompt_column"]),
        ({"task": {"name": "gsm9k"}}, ["task.name", "'gsm9k'", "gsm8k"]),
        ({"prompt": {"template": "qwen"}}, ["prompt.template", "'qwen'", "{problem}"]),
        ({"reward": {"functions": [{"weight": 1}]}}, ["reward.functions.0.function"]),
        (
            {"reward": {"functions": [{"function": "rule", "weigth": 1}]}},
            ["reward.functions.0.weigth", "did you mean reward.functions.weight"],
        ),
        (
            {"reward": {"functions": [{"function": "rule"}] * 2}},
            ["reward.functions", "rule", "twice"],
        ),
        (
            {"evaluation": {"benchmarks": [{"name": "math"}] * 2}},
            ["benchmarks", "math", "label of its own"],
        ),
        ({"evaluation": {"samples": 4}}, ["evaluation.samples", "4", "evaluation.temperature"]),
        ({"aggregator": "config"}, ["aggregator", "'config'", "it is called conflict_free now"]),
        (
            {"capo": {"radius": "auto", "region": "norm"}},
            ["capo.radius", "auto", "capo.region: norm", "set a number"],
        ),
        (
            {"program": {"blocks": "layer"}, "gradients": {"sketch": "rademacher"}},
            ["program.blocks", "layer", "set gradients.sketch"],
        ),
        (
            {"aggregator": "mean", "measure_conflict": False, "program": {"norms": "unit"}},
            ["measure_conflict", "false", "set it to true"],
        ),
        (
            {"aggregator": "mean", "program": {"norms": "unit", "norms_in": "program"}},
            ["program.norms_in", "program", "set it to all"],
        ),
        ({5: {"steps": 3}}, ["5", "a key must be text", "YAML"]),
        ({"zzz": 1}, ["zzz", "unknown key", "rollout"]),
        ({"train.step": 3}, ["train.step", "did you mean train.steps", "nested"]),
        ({"trian.steps": 3}, ["trian.steps", "did you mean train.steps", "nested"]),
        ({"actor": {"ppo_mini_batch_size": 64}}, ["64", "objective.minibatches", "a count"]),
        ({"warmup_ratio": 0.1}, ["0.1", "optimizer.warmup_steps", "no share"]),
    ],
)
def test_bad_settings_name_key_value_and_remedy(settings, fragments):
    with pytest.raises(ConfigError) as error:
        parse_config(settings)
    for fragment in fragments:
        assert fragment in str(error.value)


def test_all_problems_are_told_at_once():
    with pytest.raises(ConfigError) as error:
        parse_config({"capo": {"radius": -1}, "train": {"stepz": 3}})
    assert len(str(error.value).splitlines()) == 2


def test_overrides_are_yaml_and_win(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("capo: {radius: 0.1}\noptimizer: {learning_rate: 1e-5}\n")
    config = load_config(
        path, ["capo.radius=0.5", "task.levels=[1, 2]", "capo.slack_price=.inf", "train.seed=3"]
    )
    assert config.capo.radius == 0.5
    assert config.task.levels == [1, 2]
    assert config.capo.slack_price == float("inf")
    assert config.optimizer.learning_rate == 1e-5
    assert config.train.seed == 3


@pytest.mark.parametrize("override", ["capo.radius", "=1", "capo.radius.deep=1", "capo.radius=[1"])
def test_bad_overrides(tmp_path, override):
    path = tmp_path / "config.yaml"
    path.write_text("capo: {radius: 0.1}\n")
    with pytest.raises(ConfigError, match="--set"):
        load_config(path, [override])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("Answer # now", "takes # a comment; .*in quotes of its own"),
        ("#1", "takes # a comment"),
        ("&a", "takes & a name"),
        ("*bold*", "not valid YAML: .*in quotes of its own"),
        ("Answer: now", "bad value {'Answer': 'now'}.* put it in quotes"),
    ],
)
def test_text_on_the_command_line_that_yaml_reads_otherwise(tmp_path, value, message):
    path = tmp_path / "config.yaml"
    path.write_text("")
    with pytest.raises(ConfigError, match=message):
        load_config(path, [f"prompt.instruction={value}"])
    quoted = load_config(path, [f'prompt.instruction="{value}"'])
    assert quoted.prompt.instruction == value


def test_keys_with_dots_in_a_file_are_told_to_be_nested():
    with pytest.raises(ConfigError, match=r"train\.steps: .*write `train:`, .*`steps:`"):
        parse_config({"train.steps": 3})


@pytest.mark.parametrize("section", ["train", "task", "evaluation", "warmup"])
def test_seeds_are_what_torch_takes(section):
    assert parse_config({section: {"seed": 2**63 - 1}}).model_dump()[section]["seed"] == 2**63 - 1
    with pytest.raises(ConfigError, match=rf"{section}\.seed: bad value"):
        parse_config({section: {"seed": 2**63}})


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [1", "a: 2026-13-01", None])
def test_unreadable_files(tmp_path, text):
    path = tmp_path / "config.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        load_config(path)


def test_recipes_that_do_not_ship_are_told_with_those_that_do():
    with pytest.raises(ConfigError, match=r"builtin:quickstrat.*quickstart"):
        load_config("builtin:quickstrat")


def test_there_are_recipes():
    names = {"quickstart", "warmup-arithmetic", "qwen2.5-1.5b-gsm8k", "qwen2.5-3b-math"}
    assert names | {"smollm2-135m-gsm8k", "smoke"} <= {path.stem for path in RECIPES}


@pytest.mark.parametrize(
    ("name", "model", "task"),
    [
        ("qwen2.5-1.5b-gsm8k", "Qwen/Qwen2.5-1.5B", "gsm8k"),
        ("qwen2.5-3b-math", "Qwen/Qwen2.5-3B", "math"),
    ],
)
def test_the_papers_recipes_hold_its_setting(name, model, task):
    recipe = load_config(REPOSITORY / "launchers" / "recipes" / f"{name}.yaml")
    assert (recipe.model.path, recipe.task.name) == (model, task)
    assert (recipe.model.lora_rank, recipe.model.lora_alpha) == (64, 128)
    assert recipe.model.lora_targets == ["q_proj", "k_proj", "v_proj", "o_proj"]
    rollout, objective = recipe.rollout, recipe.objective
    assert (rollout.prompts_per_step, rollout.group_size, rollout.temperature) == (64, 8, 1.0)
    assert (objective.clip_low, objective.clip_high, objective.kl_weight) == (0.2, 0.2, 0.001)
    assert (objective.epochs, objective.minibatches) == (1, 1)
    assert recipe.optimizer.learning_rate == 1e-6
    assert (recipe.gradients.sketch, recipe.gradients.sketch_dim) == ("rademacher", 8192)
    assert recipe.capo.radius in (0.1, 0.5, 1.0) and recipe.capo.region == "difference"
    benchmarks = [benchmark.name for benchmark in recipe.evaluation.benchmarks]
    assert benchmarks == [task, "amc23", "aime24"]
    assert (recipe.evaluation.samples, recipe.evaluation.temperature) == (1, 0)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_valid(path):
    config = load_config(path)
    read_deepspeed_json(config.deepspeed)


def test_resolved_config_reads_back_as_itself(tmp_path):
    config = parse_config({"capo": {"radius": 0.25}, "optimizer": {"betas": [0.9, 0.95]}})
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert load_config(path) == config


def test_reference_names_every_key():
    reference = config_reference()
    assert "task.levels (list[int]," in reference and "Annotated" not in reference
    assert "evaluation.limit (int | null, default null)" in reference
    assert "reward.functions.function (str, required)" in reference
    for section, field in Config.model_fields.items():
        keys = getattr(field.annotation, "model_fields", {})
        for key in keys:
            assert f"{section}.{key} (" in reference
            assert keys[key].description
    of_rollout = parse_reference(reference)["rollout.top_p"]
    assert "off-policy" in of_rollout
    assert "rollout" not in parse_reference(reference)["evaluation.top_p"]


def parse_reference(reference: str) -> dict[str, str]:
    """Each key's description."""
    lines = reference.splitlines()
    return {line.split(" (")[0]: told for line, told in pairwise(lines)}


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ('{"zero_optimization": {"stage": 4}}', "stage 4"),
        ('{"optimizer": {}}', "'optimizer'"),
        ('{"bf16": {"enabled": true}}', "model.dtype"),
        ("{", "not a readable JSON file"),
        ("[]", "no JSON object"),
        ('{"train_batch_size": 64}', "'train_batch_size'"),
    ],
)
def test_deepspeed_files_that_cannot_be_used(tmp_path, text, fragment):
    path = tmp_path / "zero.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="deepspeed") as error:
        read_deepspeed_json(str(path))
    assert fragment in str(error.value)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"stage": 3, "overlap_com": False}, ".overlap_com: .*did you mean overlap_comm"),
        ({"stage": 2, "stage3_max_live_parameters": "many"}, "_live_parameters: bad value 'many'"),
        ({"offload_optimizer": {"devic": "cpu"}}, ".offload_optimizer.devic: .*mean device"),
        ({"offload_optimizer": {"device": "gpu"}}, "'gpu'; input should be 'none', 'cpu' or"),
        ({"stage": 1, "offload_optimizer": {"ratio": 0.5}}, "only supported for ZeRO Stage 3"),
        ({"cpu_offload": True, "offload_optimizer": {}}, "'cpu_offload' and replacing"),
    ],
)
def test_what_deepspeed_refuses_is_told_by_file_and_key(tmp_path, settings, told):
    path = tmp_path / "zero.json"
    path.write_text(json.dumps({"wall_clock_breakdown": False, "zero_optimization": settings}))
    with pytest.raises(ConfigError, match=rf"^deepspeed: .*/zero\.json: zero_opt.*{told}") as error:
        read_deepspeed_json(str(path))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"comms_logger": {"verbos": True}}, "comms_logger.verbos: .*did you mean verbose"),
        ({"activation_checkpointing": 3}, "activation_checkpointing: bad value 3; write an obj"),
        ({"checkpoint": {"tag_validation": "x"}}, "checkpoint: .*tag_validation"),
    ],
)
def test_so_are_its_other_sections(tmp_path, settings, told):
    path = tmp_path / "zero.json"
    path.write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=f"^deepspeed: .*: {told}"):
        read_deepspeed_json(str(path))


def test_what_deepspeed_takes_is_taken_and_what_it_ignores_is_told(tmp_path):
    path = tmp_path / "zero.json"
    zero = {"stage": 3, "cpu_offload": False, "reduce_bucket_size": "auto", "sub_group_size": 1e9}
    known = {"activation_checkpointing": {}, "aio": {}, "flops_profiler": {"enabled": False}}
    path.write_text(json.dumps({"zero_optimization": zero} | known))
    assert read_deepspeed_json(str(path))["zero_optimization"] == zero
    assert ignored_lines(str(path)) == []
    path.write_text(json.dumps({"zero_optimisation": zero, "mine": 1}))
    misspelt, mine = ignored_lines(str(path))
    assert misspelt.endswith("ignores it; did you mean zero_optimization?")
    assert mine.endswith("'mine' is no key of DeepSpeed's, which ignores it")


def test_buckets_that_are_auto_are_ours(tmp_path):
    path = tmp_path / "zero.json"
    path.write_text('{"zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"}}')
    settings = deepspeed_settings(parse_config({"deepspeed": str(path)}), tmp_path, 7)
    assert settings["zero_optimization"]["reduce_bucket_size"] == 7


def test_the_page_of_the_docs_is_up_to_date():
    docs = REPOSITORY / "docs"
    page = runpy.run_path(str(docs / "configuration.py"))["page"]()
    assert (docs / "configuration.md").read_text() == page, "run: python docs/configuration.py"
    for key in re.findall(r"^(\S+) \(", config_reference(), flags=re.MULTILINE):
        assert page.count(f"| `{key}` |") == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rollout": {"ahead": 1}}, "rollout.ahead: 1 needs a sampler outside .* hf is not; set "),
        ({"rollout": {"ahead": 2, "sampler": "vllm"}}, "which vllm is not"),
        ({"rollout": {"ahead": -1}}, "rollout.ahead"),
        (
            {"rollout": {"ahead": 1, "sampler": "process", "importance_correction": "sequence"}},
            "set it to token, or objective.ratio_to to trainer",
        ),
    ],
)
def test_rollouts_ahead_that_cannot_be(settings, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(settings)


def test_what_follows_from_rollouts_ahead():
    decided = {}
    for ahead, sampler in ((0, "hf"), (1, "process")):
        config = parse_config({"rollout": {"ahead": ahead, "sampler": sampler}})
        decided[ahead] = (config.ratio_to, config.importance_correction)
    assert decided == {0: ("trainer", "none"), 1: ("sampler", "token")}
    decoupled = parse_config(
        {
            "rollout": {"ahead": 1, "sampler": "process", "importance_correction": "sequence"},
            "objective": {"ratio_to": "trainer"},
        }
    )
    assert decoupled.ratio_to == "trainer" and decoupled.importance_correction == "sequence"


def test_a_folder_is_named_once_where_a_file_is_not(monkeypatch):
    monkeypatch.chdir(reading.HOME)
    with pytest.raises(ConfigError) as caught:
        reading.resolve_path("deepspeed", "none.json")
    assert str(caught.value).count(f"in {reading.HOME}") == 1
