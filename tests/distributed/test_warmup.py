import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import launch

ARGUMENTS = [
    "--config",
    "launchers/recipes/warmup-arithmetic.yaml",
    "--set=model.path=builtin:tiny",
    "--set=task.train_problems=64",
    "--set=task.test_problems=5",
    "--set=train.micro_batch_size=2",
    "--set=warmup.batch_size=9",  # one rank of two brings an empty micro-batch
    "--set=warmup.max_steps=3",
    "--set=warmup.eval_every=3",
    "--set=warmup.stop_accuracy=1.0",
]


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    launch(1, "launchers/warmup.py", *ARGUMENTS, f"--set=warmup.output_dir={folder}")
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("stage", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_two_ranks_learn_what_one_learns(tmp_path, one_rank, stage):
    result = launch(
        2,
        "launchers/warmup.py",
        *ARGUMENTS,
        f"--set=warmup.output_dir={tmp_path}",
        f"--set=deepspeed=ds_configs/zero{stage}.json",
    )
    assert "was not reached in warmup.max_steps = 3" in result.stdout
    two_ranks = load_file(tmp_path / "model.safetensors")
    assert two_ranks.keys() == one_rank.keys()
    for name, weights in one_rank.items():
        torch.testing.assert_close(two_ranks[name], weights, rtol=0, atol=1e-4)


def test_bad_input_is_one_message_for_all_ranks():
    bad = [*ARGUMENTS, "--set=warmup.batch_size=1"]
    result = launch(2, "launchers/warmup.py", *bad, status=2)
    assert result.stderr.count("warmup.batch_size: 1 is fewer sequences than the 2 ranks") == 1
    assert "Traceback" not in result.stderr
