"""Config files as people write them: paths, encodings, YAML's traps, other libraries' words."""

import pytest

from capo_ds.config import ConfigError, config_reference, load_config, parse_config
from capo_ds.config.foreign import KEYS, NOTES
from capo_ds.config.text import parse_yaml
from capo_ds.distributed.deepspeed_json import read_deepspeed_json

PATHS = {
    "model.path": "~/m",
    "task.path": "~/t.jsonl",
    "task.test_path": "~/t.jsonl",
    "train.output_dir": "~/r",
    "warmup.output_dir": "~/w",
    "evaluation.output_dir": "~/e",
    "evaluation.adapter": "~/a",
    "deepspeed": "~/z.json",
    "aggregator": "~/mine.py:f",
}


@pytest.mark.parametrize(("key", "path"), PATHS.items())
@pytest.mark.parametrize("head", ["~", "$PLACE", "${PLACE}"])
def test_every_path_key_knows_home_and_variables(monkeypatch, key, path, head):
    monkeypatch.setenv("HOME", "/people/ann")
    monkeypatch.setenv("PLACE", "/people/ann")
    section, _, name = key.rpartition(".")
    settings = {name: path.replace("~", head)}
    config = parse_config({section: settings} if section else settings)
    value = getattr(getattr(config, section) if section else config, name)
    assert value == path.replace("~", "/people/ann")


def test_paths_in_lists_too(monkeypatch):
    monkeypatch.setenv("HOME", "/people/ann")
    config = parse_config(
        {
            "reward": {"functions": [{"function": "~/r.py:f"}]},
            "evaluation": {"benchmarks": [{"name": "gsm8k", "path": "~/g.jsonl"}]},
        }
    )
    assert config.reward.functions[0].function == "/people/ann/r.py:f"
    assert config.evaluation.benchmarks[0].path == "/people/ann/g.jsonl"


def test_other_paths_are_as_they_were():
    for path in ("Qwen/Qwen2.5-1.5B", "./~odd", "a b/[1]/ü", "cost$", "$1", "a~b"):
        assert parse_config({"model": {"path": path}}).model.path == path


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("$NO_SUCH_PLACE/x", "no variable NO_SUCH_PLACE"),
        ("~nobody-of-that-name/x", "no home folder for '~nobody-of-that-name'"),
        ("", "cannot be empty"),
    ],
)
def test_paths_that_lead_nowhere(path, message):
    with pytest.raises(ConfigError, match=f"train.output_dir: .*{message}"):
        parse_config({"train": {"output_dir": path}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {steps: 1}\ncapo: {radius: 1}\ntrain: {seed: 2}\n", "line 3.*'train'.*line 1"),
        ("train:\n  steps: 1\n  steps: 2\n", "line 3.*'steps'.*line 2"),
        ("evaluation:\n  benchmarks:\n    - {name: math, name: gsm8k}\n", "line 3.*'name'"),
        ("train: {steps: 1}\n---\ntrain: {steps: 2}\n", "line 2.*single document"),
        ("train:\n\tsteps: 1\n", "line 2.*spaces, not with tabs"),
        ("train: {steps: 010}\n", "line 1.*010 in base 8"),
        ("train: {steps: 1:30}\n", "line 1.*1:30 in base 60"),
        ("capo:\n", "capo: a section without keys"),
        ("task: {subset: on}\n", "task.subset: bad value True.*quotes"),
        ("task: {subset: 2024}\n", "task.subset: bad value 2024.*quotes"),
        ("task: {path: None}\n", "line 1.*None as a text.*null"),
    ],
)
def test_yaml_that_does_not_say_what_it_seems_to(tmp_path, text, message):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(path)


def test_anchors_and_merge_keys_remain():
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: *a\n"
    assert parse_yaml(text, "f")["b"] == {"x": 1, "y": 3}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_configs_in_what_encoding_they_say(tmp_path, encoding):
    path = tmp_path / "config.yaml"
    path.write_bytes("train: {output_dir: rüns}\n".encode(encoding))
    assert load_config(path).train.output_dir == "rüns"


def test_a_latin_1_config_is_refused_by_line(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes("# a\ntrain: {output_dir: rüns}\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"config\.yaml, line 2: byte 0xfc .*iconv"):
        load_config(path)


@pytest.mark.parametrize(
    ("section", "key", "expected"),
    [
        (None, "beta", "objective.kl_weight"),
        ("train", "lr", "optimizer.learning_rate"),
        ("rollout", "n", "rollout.group_size"),
        (None, "num_generations", "rollout.group_size"),
        (None, "report_to", "train.report_to"),
        ("train", "per_device_train_batch_size", "train.micro_batch_size"),
        ("objective", "epsilon", "objective.clip_low and objective.clip_high"),
        (None, "learning_rate", "optimizer.learning_rate"),  # our own word, elsewhere
    ],
)
def test_words_of_trl_and_verl_are_known(section, key, expected):
    with pytest.raises(ConfigError, match=expected):
        parse_config({section: {key: 1}} if section else {key: 1})


def test_a_section_of_verls_is_told_key_by_key():
    verl = {
        "actor_rollout_ref": {
            "model": {"path": "m"},
            "rollout": {"n": 8, "name": "vllm", "enforce_eager": True, "val_kwargs": {"n": 4}},
            "actor": {"optim": {"lr": 1e-6}, "kl_loss_coef": 0.1, "clip_ratio_c": 3},
        },
        "custom_reward_function": {"path": "f.py"},
        "algorithm": {"gamma": 1.0},
    }
    with pytest.raises(ConfigError) as error:
        parse_config(verl)
    told = dict(line.split(": ", 1) for line in str(error.value).splitlines())
    for key, remedy in {
        "actor_rollout_ref.model.path": "did you mean model.path?",
        "actor_rollout_ref.rollout.n": "did you mean rollout.group_size?",
        "actor_rollout_ref.rollout.name": "did you mean rollout.sampler?",
        "actor_rollout_ref.rollout.enforce_eager": "remove it",
        "actor_rollout_ref.rollout.val_kwargs.n": "did you mean evaluation.samples?",
        "actor_rollout_ref.actor.optim.lr": "did you mean optimizer.learning_rate?",
        "actor_rollout_ref.actor.kl_loss_coef": "did you mean objective.kl_weight?",
        "actor_rollout_ref.actor.clip_ratio_c": "did you mean objective.dual_clip?",
        "custom_reward_function.path": "did you mean reward.functions?",
        "algorithm.gamma": "no critic",
    }.items():
        assert remedy in told[key]


@pytest.mark.parametrize("key", ["group", "dropout", "async_train", "format_reward"])
def test_words_that_are_like_no_key_are_not_taken_for_one(key):
    with pytest.raises(ConfigError, match="known keys: model, task"):
        parse_config({key: 1})


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"model": {"dtype": "bf16"}}, "model.dtype.*did you mean bfloat16"),
        ({"model": {"dtype": "torch.bfloat16"}}, "did you mean bfloat16"),
        ({"train": {"report_to": "none"}}, r"train.report_to.*write \[\]"),
        ({"train": {"report_to": "wandb"}}, r"write a list, \[wandb\]"),
        ({"train": {"steps": "1e3"}}, "write 1000$"),
        ({"train": {"steps": 100.0}}, "write 100$"),
        ({"optimizer": {"schedule": "cosine_with_min_lr"}}, "did you mean cosine"),
        ({"aggregator": "CAPO"}, "did you mean capo"),
        ({"task": {"name": "openai/GSM8K"}}, "did you mean gsm8k"),
        ({"evaluation": {"benchmarks": ["gsm8k"]}}, 'as {name: "gsm8k"}'),
        ({"reward": {"functions": ["f.py:g"]}}, 'as {function: "f.py:g"}'),
        ({"model": {"gradient_checkpointing": "True"}}, "write true, without quotes"),
        ({"model": {"lora_targets": []}}, "^model.lora_targets: bad value"),
        ({"prompt": {"str": 1}}, "^prompt.str: unknown key"),
    ],
)
def test_values_as_others_write_them_are_told_how_to_write(settings, remedy):
    with pytest.raises(ConfigError, match=remedy) as error:
        parse_config(settings)
    assert len(str(error.value).splitlines()) == 1


def test_what_is_proposed_exists():
    known = {line.split(" (")[0] for line in config_reference().splitlines() if line[0] != " "}
    sections = {key.rpartition(".")[0] for key in known}
    for keys in KEYS:
        assert set(keys.split(" and ")) <= known | sections, keys
    words = [word for told in (*KEYS.values(), *NOTES) for word in told.split()]
    assert len(words) == len(set(words))
    assert not set(words) & {key for key in known}


def test_deepspeeds_json_in_other_encodings_and_with_a_key_twice(tmp_path):
    file = tmp_path / "zero.json"
    file.write_bytes('{"zero_optimization": {"stage": 1}}'.encode("utf-16"))  # PowerShell's
    assert read_deepspeed_json(str(file))["zero_optimization"]["stage"] == 1
    file.write_text('{"zero_optimization": {"stage": 1}, "zero_optimization": {"stage": 2}}')
    with pytest.raises(ConfigError, match="zero_optimization is there twice"):
        read_deepspeed_json(str(file))
    with pytest.raises(ConfigError, match=r"no file 'zero2' .*there are .*ds_configs/zero2\.json"):
        read_deepspeed_json("zero2")


@pytest.mark.parametrize("text", ['{"bf16": true}', '{"fp16": null}', '{"zero_optimization": 2}'])
def test_a_section_of_deepspeeds_json_that_is_none_is_refused(text, tmp_path):
    file = tmp_path / "slip.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match="not an object"):
        read_deepspeed_json(str(file))
