import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from capo_ds.config import ConfigError, TaskConfig, parse_config
from capo_ds.preparation import prompt_order
from capo_ds.tasks import Problem, load_problems
from capo_ds.tasks.groups import Groups
from capo_ds.tasks.mixture import PromptOrder, by_source

SIZES, WEIGHTS = (40, 7, 3), (0.5, 0.3, 0.2)
MEMBERS = [np.arange(start, start + n) for start, n in zip((0, 40, 47), SIZES, strict=True)]


def order(seed: int = 0, per_step: int = 16) -> PromptOrder:
    return PromptOrder(MEMBERS, WEIGHTS, per_step, seed)


def test_an_epoch_of_one_data_set_draws_each_problem_once():
    drawn = PromptOrder([np.arange(21)], [1.0], 6, seed=4)
    indices = [index for step in range(7) for index in drawn(step)]
    assert sorted(indices[:21]) == sorted(indices[21:42]) == list(range(21))
    assert indices[:21] != indices[21:42]


def test_more_prompts_than_problems():
    drawn = Counter(PromptOrder([np.arange(3)], [1.0], 7, seed=0)(0))
    assert sorted(drawn.values()) == [2, 2, 3]


@pytest.mark.parametrize("per_step", [1, 2, 16, 33])
def test_every_step_has_the_shares_within_one_prompt_and_the_run_has_them_exactly(per_step):
    counts = np.array([np.bincount(order(3, per_step).sources(s), minlength=3) for s in range(800)])
    assert (counts.sum(1) == per_step).all()
    assert (np.abs(counts - per_step * np.array(WEIGHTS)) < 1).all()
    # 800 steps, each with a deviation below one half of a prompt: 4 of it over sqrt(800)
    assert np.abs(counts.mean(0) - per_step * np.array(WEIGHTS)).max() < 0.08


def test_in_a_mixture_each_data_set_is_gone_through_epoch_by_epoch():
    drawn = order()
    indices = [index for step in range(20) for index in drawn(step)]
    for members in MEMBERS:
        own = [index for index in indices if index in members]
        for start in range(0, len(own) - len(members) + 1, len(members)):
            assert sorted(own[start : start + len(members)]) == members.tolist()


def test_the_order_follows_from_seed_and_step_alone():
    steps = [order(5)(step) for step in range(6)]
    resumed = order(5)
    assert [resumed(step) for step in (5, 3, 4)] == [steps[5], steps[3], steps[4]]
    assert order(6)(3) != steps[3]


def test_a_weight_of_nearly_nothing_is_drawn_once_in_a_while():
    drawn = PromptOrder(MEMBERS[:2], [0.999, 0.001], 8, seed=0)
    rare = sum(int((drawn.sources(step) == 1).sum()) for step in range(1000))
    assert 2 <= rare <= 20  # 8 expected


def mixture(*entries: dict, **others) -> dict:
    return {"task": {"mixture": list(entries)} | others}


def test_problems_of_a_mixture_carry_its_labels(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"q": f"{i}?", "a": i}) for i in range(5)))
    own = {"name": "custom", "path": str(path), "prompt_column": "q", "answer_column": "a"}
    task = parse_config(
        mixture({"train_problems": 6, "weight": 3, "asks": "before"}, own | {"label": "mine"})
    ).task
    problems = load_problems(task, "train")
    assert Counter(problem.source for problem in problems) == {"arithmetic": 6, "mine": 5}
    assert {name: len(rows) for name, rows in by_source(problems).items()} == {
        "arithmetic": 6,
        "mine": 5,
    }
    assert task.weights == [0.75, 0.25]


def test_one_data_set_is_what_it_was():
    config = parse_config({"task": {"train_problems": 9}})
    problems = load_problems(config.task, "train")
    expected = PromptOrder([np.arange(9)], [1.0], config.rollout.prompts_per_step, 0)
    assert prompt_order(config, problems)(4) == expected(4)
    assert {problem.source for problem in problems} == {"arithmetic"}


def test_resolved_settings_can_be_read_again():
    config = parse_config(mixture({"label": "a"}, {"label": "b", "levels": [1]}))
    assert parse_config(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (mixture({}, {"levels": [4]}), ["task.mixture", "arithmetic", "twice", "a label"]),
        (mixture({}, levels=[4]), ["task.levels", "[4]", "entries"]),
        (mixture({}, name="gsm8k"), ["task.name", "gsm8k", "entries"]),
        (mixture({"weight": 0}), ["task.mixture.0.weight", "0", "greater than 0"]),
        (mixture({"weight": "much"}), ["task.mixture.0.weight", "much"]),
        (mixture({"wieght": 1}), ["task.mixture.0.wieght", "unknown key", "weight"]),
        (mixture({"name": "custom"}), ["custom", "path", "task.mixture"]),
        (mixture({"asks": "half"}), ["asks", "half"]),
        (mixture({"mixture": []}), ["task.mixture.0.mixture", "unknown key"]),
    ],
)
def test_bad_mixtures(settings, words):
    with pytest.raises(ConfigError) as error:
        parse_config(settings)
    for word in words:
        assert word in str(error.value)


def test_a_data_set_whose_prompts_are_all_too_long_is_named():
    config = parse_config(mixture({"train_problems": 2}, {"label": "long", "asks": "before"}))
    problems = [p for p in load_problems(config.task, "train") if p.source == "arithmetic"]
    with pytest.raises(ConfigError, match=r"max_prompt_tokens.*'long'"):
        prompt_order(config, problems)


def test_groups_are_data_sets_and_levels():
    problems = [
        Problem("1", "1", source="a/b", columns={"level": 1}),
        Problem("2", "2", source="c", columns={"level": "Level 5"}),
        Problem("3", "3", source="c"),
    ]
    groups = Groups(problems)
    assert groups.rows(problems) == {
        "by_source/a-b": [0],
        "by_source/c": [1, 2],
        "by_level/1": [0],
        "by_level/Level 5": [1],
    }
    assert groups.rows(problems[1:2]) == {"by_source/c": [0], "by_level/Level 5": [0]}


def test_one_data_set_is_no_group_and_a_column_of_many_values_no_level():
    problems = [Problem("?", "1", source="a", columns={"level": n}) for n in range(21)]
    assert Groups(problems).rows(problems) == {}
    assert set(Groups(problems[:2]).rows(problems[:2])) == {"by_level/0", "by_level/1"}


def test_settings_of_a_task_without_a_mixture():
    assert TaskConfig(levels=[2]).entries[0].levels == [2]
    assert TaskConfig().weights == [1.0]
