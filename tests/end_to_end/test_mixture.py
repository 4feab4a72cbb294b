"""A mixture of data sets, one generated and one of a file: the same on one rank and on two."""

import json
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, launch

TRAIN = REPOSITORY / "launchers" / "train.py"
CONFIG = """
task:
  mixture:
    - {{label: generated, weight: 3, levels: [1, 2], train_problems: 40, test_problems: 8}}
    - {{label: mine, name: custom, path: {file}, test_path: {file}, prompt_column: q,
        answer_column: a}}
rollout: {{prompts_per_step: {prompts}, group_size: 4, max_new_tokens: 16}}
deepspeed: {deepspeed}
train: {{steps: 2, eval_every: 2, micro_batch_size: 8, output_dir: {output}}}
"""


PARTITIONED = {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}


def run(
    folder: Path, ranks: int, deepspeed: object = "ds_configs/zero2.json", prompts: int = 8, **how
) -> list[dict]:
    """The lines of the log; how: see `launch`."""
    rows = [{"q": f"Tom has {n} eggs. He finds 3 more. How many?", "a": n + 3} for n in range(9)]
    file = folder / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    output = folder / f"ranks{ranks}"
    config = folder / "config.yaml"
    settings = {"file": file, "output": output, "deepspeed": deepspeed, "prompts": prompts}
    config.write_text(CONFIG.format(**settings))
    launch(ranks, TRAIN, "--config", str(config), **how)
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_mixture_is_the_same_on_one_rank_and_on_two(tmp_path):
    one, two = run(tmp_path, 1), run(tmp_path, 2)
    told = {name for name in one[1] if name.startswith("reward/by_")}
    assert {"reward/by_source/generated/mean", "reward/by_source/mine/accuracy"} <= told
    assert {"reward/by_level/1/formatted", "reward/by_level/2/groups_all_wrong"} <= told
    for name in sorted(told):
        assert two[1][name] == pytest.approx(one[1][name]), name
    shares = one[1]["reward/by_source/generated/mean"], one[1]["reward/by_source/mine/mean"]
    assert one[1]["reward/mean"] == pytest.approx(0.75 * shares[0] + 0.25 * shares[1])
    evaluated = {"eval/generated/accuracy", "eval/mine/accuracy", "eval/by_level/2/accuracy"}
    assert evaluated <= set(two[-1])
    accuracies = two[-1]["eval/generated/accuracy"], two[-1]["eval/mine/accuracy"]
    assert two[-1]["eval/worst"] == min(accuracies)


@pytest.mark.slow
def test_a_mixture_on_partitioned_weights_where_ranks_have_unequal_shares(tmp_path):
    """ZeRO 3 makes every rank take part in every pass: three ranks share four prompts, so that one
    of them has twice the others' work, and then two, so that one has none."""
    zero3 = tmp_path / "zero3.json"
    zero3.write_text(json.dumps(PARTITIONED))
    for prompts in (4, 2):
        folder = tmp_path / str(prompts)
        folder.mkdir()
        one = run(folder, 1, prompts=prompts)
        three = run(folder, 3, zero3, prompts, launcher="deepspeed")
        assert one[2].keys() >= {"reward/by_source/generated/mean", "eval/mine/accuracy"}
        for name in (name for name in one[1] if name.startswith(("reward/", "eval/"))):
            assert three[1][name] == pytest.approx(one[1][name]), name
