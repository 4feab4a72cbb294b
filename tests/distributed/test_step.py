"""One optimizer step on real ranks against dense references in float64."""

import json
from pathlib import Path

import cvxpy
import numpy as np
import pytest
import torch
import yaml
from torch.nn.functional import log_softmax

from capo_ds.config import CapoConfig, Config, load_config
from capo_ds.models import load_policy, position_ids
from tests.conftest import REPOSITORY, asked_for, launch
from tests.distributed.one_step import SECOND_MOVE, perturb, responses

SCRIPT = Path(__file__).with_name("one_step.py")
SETTINGS = {
    "model": {"lora_rank": 2, "lora_alpha": 4, "lora_targets": ["q_proj", "v_proj"]},
    "rollout": {"prompts_per_step": 6, "group_size": 4, "max_new_tokens": 11, "temperature": 0.9},
    "objective": {"kl_weight": 0.05},
    "optimizer": {"learning_rate": 1e-2, "weight_decay": 0.01, "max_grad_norm": 0.0},
    "train": {"micro_batch_size": 5},
}


# The policy moves between sampling and the update; narrow clips, so that whole samples are clipped.
OFF_POLICY = {"epochs": 2, "clip_low": 0.02, "clip_high": 0.05, "kl_weight": 0.01}
# ZeRO 3 that partitions even these small weights; DeepSpeed keeps them whole by default.
ZERO = [{"stage": stage, "stage3_param_persistence_threshold": 0} for stage in range(4)]
PARTITIONED = {"zero_optimization": ZERO[3]}
# name: (ranks, changes to SETTINGS)
STAGES = {
    f"{aggregator}, ZeRO {stage} on {ranks}": (
        ranks,
        {
            "aggregator": aggregator,
            "deepspeed": {"zero_optimization": ZERO[stage]},
            "train": {"micro_batch_size": micro_batch},
        },
    )
    for stage in range(4)
    for ranks, micro_batch in ((1, 24), (2, 5), (4, 2))
    for aggregator in ("mean", "capo")
}
# Each stage, number of ranks and aggregator stands in a fast case too, here or below.
SLOW = {
    f"{aggregator}, ZeRO {stage} on {ranks}"
    for aggregator, places in {
        "mean": ((0, 2), (0, 4), (1, 4), (2, 1), (2, 2), (3, 1)),
        "capo": ((0, 1), (0, 2), (1, 1), (1, 2), (2, 4), (3, 4)),
    }.items()
    for stage, ranks in places
} | {"capo, compiled"}
CASES = STAGES | {
    "mean, ZeRO 2": (2, {"aggregator": "mean", "deepspeed": "ds_configs/zero2.json"}),
    "mean, ZeRO 0, token mean": (
        2,
        {
            "aggregator": "mean",
            "deepspeed": "ds_configs/zero0.json",
            "objective": {"loss_aggregation": "token_mean"},
        },
    ),
    "mean, plain backward, token mean": (
        2,
        {
            "aggregator": "mean",
            "measure_conflict": False,
            "objective": {"loss_aggregation": "token_mean"},
        },
    ),
    "mean, plain backward, fixed length": (
        1,
        {
            "aggregator": "mean",
            "measure_conflict": False,
            "objective": {"loss_aggregation": "fixed_length"},
        },
    ),
    "mean, one micro-batch, masked": (
        1,
        {
            "aggregator": "mean",
            "train": {"micro_batch_size": 24},
            "objective": {"mask_truncated": True},
        },
    ),
    "mean, micro-batches of one, masked": (
        4,
        {
            "aggregator": "mean",
            "train": {"micro_batch_size": 1},
            "objective": {"mask_truncated": True},
        },
    ),
    "mean, clipped": (2, {"aggregator": "mean", "optimizer": {"max_grad_norm": 1e-3}}),
    "capo, ZeRO 0, wide": (
        2,
        {"aggregator": "capo", "deepspeed": "ds_configs/zero0.json", "capo": {"radius": 0.9}},
    ),
    "capo, token mean": (
        1,
        {"aggregator": "capo", "objective": {"loss_aggregation": "token_mean"}},
    ),
    "capo, masked": (
        4,
        {
            "aggregator": "capo",
            "objective": {"mask_truncated": True},
            "train": {"micro_batch_size": 3},
        },
    ),
    "capo, ZeRO 1": (2, {"aggregator": "capo", "deepspeed": "ds_configs/zero1.json"}),
    "capo, off-policy": (2, {"aggregator": "capo", "objective": OFF_POLICY}),
    "capo, ZeRO 0, clipped": (
        2,
        {
            "aggregator": "capo",
            "deepspeed": "ds_configs/zero0.json",
            "optimizer": {"max_grad_norm": 1e-3},
        },
    ),
    "mean, off-policy, token mean": (
        2,
        {
            "aggregator": "mean",
            "measure_conflict": False,
            "objective": OFF_POLICY | {"loss_aggregation": "token_mean"},
        },
    ),
    "sketch, outer": (2, {"aggregator": "capo", "gradients": {"sketch": "outer"}}),
    "sketch, sparse": (2, {"aggregator": "capo", "gradients": {"sketch": "sparse"}}),
    "sketch, recompute": (
        2,
        {"aggregator": "capo", "gradients": {"sketch": "sparse", "store": "recompute"}},
    ),
    "sketch, recompute, 4 ranks": (
        4,
        {
            "aggregator": "capo",
            "gradients": {"sketch": "sparse", "store": "recompute"},
            "train": {"micro_batch_size": 2},
        },
    ),
    "sketch, norm ball": (
        1,
        {
            "aggregator": "capo",
            "gradients": {"sketch": "rademacher"},
            "capo": {"region": "norm"},
        },
    ),
    "capo, norm ball": (1, {"aggregator": "capo", "capo": {"region": "norm"}}),
    "mean, ZeRO 3": (2, {"aggregator": "mean", "deepspeed": "ds_configs/zero3.json"}),
    "mean, ZeRO 3, plain backward": (
        2,
        {"aggregator": "mean", "measure_conflict": False, "deepspeed": PARTITIONED},
    ),
    "capo, ZeRO 3, off-policy": (
        4,
        {"aggregator": "capo", "deepspeed": PARTITIONED, "objective": OFF_POLICY},
    ),
    "capo, ZeRO 3, checkpointing": (
        2,
        {
            "aggregator": "capo",
            "deepspeed": PARTITIONED,
            "model": {"gradient_checkpointing": True},
        },
    ),
    "capo, ZeRO 2, offload": (
        2,
        {"aggregator": "capo", "deepspeed": "ds_configs/zero2_offload.json"},
    ),
    "capo, ZeRO 3, offload": (
        2,
        {"aggregator": "capo", "deepspeed": "ds_configs/zero3_offload.json"},
    ),
    **{
        f"bfloat16, ZeRO {stage}": (
            2,
            {
                "aggregator": "capo",
                "deepspeed": {"zero_optimization": ZERO[stage]},
                "model": {"dtype": "bfloat16"},
            },
        )
        for stage in range(4)
    },
    "sketch, ZeRO 3, recompute": (
        4,
        {
            "aggregator": "capo",
            "deepspeed": PARTITIONED,
            "gradients": {"sketch": "sparse", "store": "recompute"},
            "train": {"micro_batch_size": 2},
        },
    ),
    "sketch, host": (
        2,
        {"aggregator": "capo", "gradients": {"sketch": "sparse", "store": "host"}},
    ),
    "capo, host": (2, {"aggregator": "capo", "gradients": {"store": "host"}}),
    "given, mean of unit gradients": (
        2,
        {"aggregator": "mean", "program": {"norms": "unit"}, "deepspeed": PARTITIONED},
    ),
    "given, unit": (2, {"aggregator": "capo", "program": {"norms": "unit"}}),
    "given, clipped in the program, 4 ranks": (
        4,
        {"aggregator": "capo", "program": {"norms": "clip", "norms_in": "program"}},
    ),
    "given, unit, recompute": (
        2,
        {
            "aggregator": "capo",
            "program": {"norms": "unit"},
            "gradients": {"sketch": "sparse", "store": "recompute"},
        },
    ),
    **{
        f"given, {blocks}s, {ranks} ranks": (
            ranks,
            {
                "aggregator": "capo",
                "program": {"blocks": blocks},
                "deepspeed": {"zero_optimization": ZERO[stage]},
            },
        )
        for blocks, ranks, stage in (("module", 1, 0), ("module", 2, 2), ("layer", 2, 3))
    },
    **{
        f"{aggregator}, micro-batches by tokens, ZeRO {stage} on {ranks}": (
            ranks,
            {
                "aggregator": aggregator,
                "deepspeed": {"zero_optimization": ZERO[stage]},
                "train": {"micro_batch_tokens": 40},
                "objective": OFF_POLICY,
            },
        )
        for aggregator, stage, ranks in (("capo", 0, 1), ("mean", 2, 2), ("capo", 3, 2))
    },
    "sketch, micro-batches by tokens, recompute": (
        2,
        {
            "aggregator": "capo",
            "gradients": {"sketch": "sparse", "store": "recompute"},
            "train": {"micro_batch_tokens": 40},
        },
    ),
    "capo, compiled": (
        2,
        {"aggregator": "capo", "model": {"compile": True}, "deepspeed": "ds_configs/zero2.json"},
    ),
    "capo, no KL": (2, {"aggregator": "capo", "objective": {"kl_weight": 0.0}}),
}


def cases(*words: str) -> list:
    """Those whose names begin with one of the words, for tests with an argument `case`."""
    return [
        pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name
        for name in CASES
        if name.startswith(words)
    ]


def write_config(folder: Path, model: str, changes: dict) -> Path:
    settings = yaml.safe_load(yaml.safe_dump(SETTINGS))
    settings["model"]["path"] = model
    settings["train"]["output_dir"] = str(folder / "run")
    for section, values in changes.items():
        if isinstance(values, dict):
            settings.setdefault(section, {}).update(values)
        else:
            settings[section] = values
    folder.mkdir(parents=True)
    if isinstance(settings.get("deepspeed"), dict):
        (folder / "deepspeed.json").write_text(json.dumps(settings["deepspeed"]))
        settings["deepspeed"] = str(folder / "deepspeed.json")
    path = folder / "case.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture(scope="module")
def steps(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, random_model: str
) -> dict[str, tuple]:
    """The config and the step of each case; one launch for each number of ranks.

    Through a launcher: tests/end_to_end/test_train.py.
    """
    folder = tmp_path_factory.mktemp("steps")
    left_out = SLOW - asked_for(request, "case")
    paths = {
        name: write_config(folder / str(number), random_model, changes)
        for number, (name, (_, changes)) in enumerate(CASES.items())
        if name not in left_out
    }
    for ranks in (1, 2, 4):
        mine = [str(path) for name, path in paths.items() if CASES[name][0] == ranks]
        launch(ranks, SCRIPT, *mine)
    return {name: (load_config(path), read_step(path)) for name, path in paths.items()}


def read_step(path: Path) -> dict:
    """What one_step.py wrote; flat vectors where there were lists of tensors."""
    result = torch.load(path.with_suffix(".pt"))
    return result | {
        name: torch.cat([part.flatten() for part in result[name]]).double().numpy()
        for name in ("before", "after", "gradient", "seen")
    }


def dense_per_sample_gradients(config: Config) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`_dense_per_sample_gradients`, once for all cases that differ in other settings only."""
    key = repr((config.model, config.rollout, config.objective, config.on_policy))
    if key not in _dense:
        _dense[key] = _dense_per_sample_gradients(config)
        for array in _dense[key]:
            array.flags.writeable = False
    return _dense[key]


_dense: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}


def _dense_per_sample_gradients(config: Config) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N, d) ascent gradients by one backward pass per sample, (N,) advantages, parameters (d,).

    A sample without policy gradient (all its tokens clipped or masked) has advantage 0.

    Written against the definitions, sharing nothing with the package but model and responses.
    """
    policy = load_policy(config.model.model_copy(update={"compile": False}), seed=0)
    perturb(policy)
    policy.double()
    parameters = [p for p in policy.parameters() if p.requires_grad]
    rollout, advantages = responses(config)
    objective = config.objective
    counted = rollout.completion_mask
    if objective.mask_truncated:
        counted = counted & ~rollout.truncated[:, None]

    def log_probs(i: int) -> torch.Tensor:
        length = int(rollout.completion_mask[i].sum())
        completion = rollout.completion_ids[i][:length]
        ids = torch.cat([rollout.prompt_ids[i][rollout.prompt_mask[i]], completion])[None]
        mask = torch.ones_like(ids)
        logits = policy(ids, attention_mask=mask, position_ids=position_ids(mask)).logits
        table = log_softmax(logits[0, -length - 1 : -1] / config.rollout.temperature, -1)
        return table[torch.arange(length), completion]

    before = torch.cat([p.detach().flatten() for p in parameters]).numpy().copy()
    behaviour = [log_probs(i).detach() for i in range(len(rollout))]
    if not config.on_policy:
        perturb(policy, **SECOND_MOVE)
    gradients = []
    for i, advantage in enumerate(advantages.tolist()):
        with torch.no_grad(), policy.disable_adapter():
            reference = log_probs(i)
        ours = log_probs(i)
        mask = counted[i][: len(ours)]
        ratio = torch.exp(ours - behaviour[i])
        low, high = 1 - objective.clip_low, 1 + objective.clip_high
        surrogate = torch.minimum(ratio * advantage, ratio.clip(low, high) * advantage)
        (slope,) = torch.autograd.grad((surrogate * mask).sum(), ours, retain_graph=True)
        advantages[i] *= float(slope.abs().sum() > 0)
        gap = reference - ours
        terms = (surrogate - objective.kl_weight * (torch.exp(gap) - gap - 1)) * mask
        if objective.loss_aggregation == "sequence_mean":
            value = terms.sum() / max(int(mask.sum()), 1)
        elif objective.loss_aggregation == "token_mean":
            value = terms.sum() * len(rollout) / int(counted.sum())
        else:
            value = terms.sum() / config.rollout.max_new_tokens
        parts = torch.autograd.grad(value, parameters)
        gradients.append(torch.cat([part.flatten() for part in parts]).numpy())
    return np.stack(gradients), advantages.numpy(), before


def primal_solution(
    gradients: np.ndarray,
    advantages: np.ndarray,
    settings: CapoConfig,
    vanilla: np.ndarray | None = None,
):
    """The elastic SOCP in R^d by CVXPY: its optimal g and value, in units of ||g_0||^2."""
    vanilla = gradients.mean(0) if vanilla is None else vanilla
    unit = np.linalg.norm(vanilla)
    rows = gradients / unit
    g, least = cvxpy.Variable(rows.shape[1]), cvxpy.Variable()
    slack = cvxpy.Variable(int((advantages < 0).sum()), nonneg=True)
    centre = vanilla / unit if settings.region == "difference" else 0 * vanilla
    problem = cvxpy.Problem(
        cvxpy.Maximize(least - settings.slack_price * cvxpy.sum(slack)),
        [
            rows[advantages > 0] @ g >= least,
            rows[advantages < 0] @ g >= -slack,
            cvxpy.norm(g - centre) <= settings.radius,
        ],
    )
    value = problem.solve(solver="CLARABEL", tol_gap_rel=1e-10, tol_gap_abs=1e-10, tol_feas=1e-10)
    return g.value * unit, value


def elastic_value(g: np.ndarray, gradients: np.ndarray, advantages: np.ndarray, price: float):
    """The SOCP's objective at g, in units of ||g_0||^2."""
    products = gradients @ g / np.linalg.norm(gradients.mean(0)) ** 2
    violation = np.maximum(-products[advantages < 0], 0).sum()
    return products[advantages > 0].min() - price * violation


def adamw_step(before: np.ndarray, ascent: np.ndarray, config: Config) -> np.ndarray:
    parameter = torch.nn.Parameter(torch.tensor(before))
    parameter.grad = -torch.tensor(ascent)
    settings = config.optimizer
    torch.optim.AdamW(
        [parameter], settings.learning_rate, settings.betas, weight_decay=settings.weight_decay
    ).step()
    return parameter.detach().numpy()


def relative_error(value: np.ndarray, reference: np.ndarray) -> float:
    return float(np.linalg.norm(value - reference) / np.linalg.norm(reference))


def check_what_the_engine_did(config: Config, result: dict, before: np.ndarray) -> None:
    """It saw minus the sum of the ranks' parts, clipped, and made AdamW's step of it."""
    ascent, limit = result["gradient"], config.optimizer.max_grad_norm
    norm = np.linalg.norm(ascent)
    assert result["metrics"]["loss/grad_norm"] == pytest.approx(norm, rel=1e-4)
    if limit:
        assert norm > 2 * limit  # there is something to clip
        ascent = ascent * limit / norm
    assert relative_error(-result["seen"], ascent) < 1e-4
    if config.on_policy:  # else the test itself has moved the parameters under the engine
        expected = adamw_step(before, ascent, config)
        assert relative_error(result["after"] - before, expected - before) < 1e-3


@pytest.mark.parametrize("case", cases("mean"))
def test_mean_is_a_plain_step_on_the_averaged_loss(steps, case):
    config, result = steps[case]
    gradients, _, before = dense_per_sample_gradients(config)
    np.testing.assert_allclose(result["before"], before, rtol=1e-6)
    assert relative_error(result["gradient"], gradients.mean(0)) < 1e-5
    check_what_the_engine_did(config, result, before)


@pytest.mark.parametrize("case", cases("capo"))
def test_capo_applies_the_solution_of_the_primal_program(steps, case):
    config, result = steps[case]
    gradients, advantages, before = dense_per_sample_gradients(config)
    reference, value = primal_solution(gradients, advantages, config.capo)
    vanilla, applied = gradients.mean(0), result["gradient"]
    assert relative_error(reference, vanilla) > 0.1  # the program does change the gradient
    assert relative_error(applied, reference) < 1e-3
    at_applied = elastic_value(applied, gradients, advantages, config.capo.slack_price)
    assert at_applied == pytest.approx(value, rel=1e-4, abs=1e-5)
    assert distance_from_centre(applied, vanilla, config) <= config.capo.radius * (1 + 1e-5)
    check_what_the_engine_did(config, result, before)


def distance_from_centre(g: np.ndarray, vanilla: np.ndarray, config: Config) -> float:
    """Of the trust region, relative to ||g_0||."""
    centre = vanilla if config.capo.region == "difference" else 0 * vanilla
    return np.linalg.norm(g - centre) / np.linalg.norm(vanilla)


def scaled_by_hand(gradients: np.ndarray, advantages: np.ndarray, norms: str) -> np.ndarray:
    """(N, d): those with an advantage clipped at their median norm, or all made as long."""
    lengths = np.linalg.norm(gradients, axis=1, keepdims=True)
    limit = np.median(lengths[advantages != 0])
    target = np.minimum(lengths, limit) if norms == "clip" else limit
    return np.where(advantages[:, None] != 0, gradients * target / lengths, gradients)


@pytest.mark.parametrize("name", ["mean of unit gradients", "unit"])
def test_scaled_gradients_everywhere(steps, name):
    config, result = steps[f"given, {name}"]
    gradients, advantages, before = dense_per_sample_gradients(config)
    scaled = scaled_by_hand(gradients, advantages, "unit")
    expected = scaled.mean(0)
    if config.aggregator == "capo":
        expected, _ = primal_solution(scaled, advantages, config.capo)
    assert relative_error(result["gradient"], expected) < 1e-3
    check_what_the_engine_did(config, result, before)


def test_scaled_gradients_in_the_program_alone(steps):
    config, result = steps["given, clipped in the program, 4 ranks"]
    gradients, advantages, _ = dense_per_sample_gradients(config)
    scaled = scaled_by_hand(gradients, advantages, "clip")
    expected, _ = primal_solution(scaled, advantages, config.capo, vanilla=gradients.mean(0))
    assert relative_error(result["gradient"], expected) < 1e-3


def test_scaled_gradients_with_a_sketch_are_on_the_true_ball(steps):
    config, result = steps["given, unit, recompute"]
    gradients, advantages, _ = dense_per_sample_gradients(config)
    scaled = scaled_by_hand(gradients, advantages, "unit")
    expected, _ = primal_solution(scaled, advantages, config.capo)
    assert relative_error(result["gradient"], expected) < 0.2
    # The norms of the sketch scale the gradients, so the ball is that of slightly other ones.
    distance = distance_from_centre(result["gradient"], scaled.mean(0), config)
    assert distance == pytest.approx(config.capo.radius, rel=2e-2)


@pytest.mark.parametrize("case", [name for name in CASES if "modules" in name or "layers" in name])
def test_each_block_is_solved_alone(steps, case):
    config, result = steps[case]
    gradients, advantages, before = dense_per_sample_gradients(config)
    policy = load_policy(config.model, seed=0)
    sizes = {}
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad:
            layer, _, rest = name.partition(".self_attn.")
            key = layer if config.program.blocks == "layer" else (layer, rest.split(".")[0])
            sizes[key] = sizes.get(key, 0) + parameter.numel()
    assert len(sizes) == (2 if config.program.blocks == "layer" else 4)
    parts = np.split(gradients, np.cumsum(list(sizes.values()))[:-1], axis=1)
    expected = [primal_solution(part, advantages, config.capo)[0] for part in parts]
    assert relative_error(result["gradient"], np.concatenate(expected)) < 2e-3
    check_what_the_engine_did(config, result, before)


@pytest.mark.parametrize("case", cases("sketch"))
def test_a_sketched_step_is_on_the_true_ball_and_near_the_exact_step(steps, case):
    config, result = steps[case]
    gradients, advantages, before = dense_per_sample_gradients(config)
    reference, _ = primal_solution(gradients, advantages, config.capo)
    vanilla, applied = gradients.mean(0), result["gradient"]
    # The norms are those of the vectors, whatever the sketch has made of them.
    distance = distance_from_centre(applied, vanilla, config)
    assert distance == pytest.approx(config.capo.radius, rel=1e-4)
    assert 1e-4 < relative_error(applied, reference) < 0.2
    check_what_the_engine_did(config, result, before)
    metrics = result["metrics"]
    true_norm = metrics["sketch/vanilla_norm"] / metrics["sketch/vanilla_norm_ratio"]
    assert true_norm == pytest.approx(np.linalg.norm(vanilla), rel=1e-4)
    assert 0.5 < metrics["sketch/direction_norm_ratio"] < 1.5


def test_store_ranks_and_micro_batches_do_not_change_a_sketched_step(steps):
    expected = steps["sketch, sparse"][1]["gradient"]
    for case in (
        "sketch, recompute",
        "sketch, recompute, 4 ranks",
        "sketch, ZeRO 3, recompute",
        "sketch, host",
    ):
        assert relative_error(steps[case][1]["gradient"], expected) < 1e-3, case


def test_the_off_policy_cases_clip_whole_samples(steps):
    """Or they would not test that such samples leave the program."""
    config, _ = steps["capo, off-policy"]
    _, sampled = responses(config)
    _, advantages, _ = dense_per_sample_gradients(config)
    assert np.any((sampled.numpy() != 0) & (advantages == 0))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bfloat16_weights_give_the_same_step_at_every_stage(steps, stage):
    expected = steps["bfloat16, ZeRO 0"][1]
    result = steps[f"bfloat16, ZeRO {stage}"][1]
    # ZeRO 3's hooks change the order in which autograd adds up bfloat16 gradients.
    tolerance = 2e-2 if stage == 3 else 1e-3
    assert relative_error(result["gradient"], expected["gradient"]) < tolerance
    np.testing.assert_array_equal(result["before"], expected["before"])


def test_bfloat16_weights_give_nearly_the_float32_gradient(steps):
    config, result = steps["bfloat16, ZeRO 0"]
    gradients, advantages, _ = dense_per_sample_gradients(config)
    reference, _ = primal_solution(gradients, advantages, config.capo)
    assert relative_error(result["gradient"], reference) < 0.1


def test_every_shipped_deepspeed_file_has_run():
    used = [changes.get("deepspeed") for ranks, changes in CASES.values() if ranks == 2]
    shipped = {f"ds_configs/{path.name}" for path in (REPOSITORY / "ds_configs").glob("*.json")}
    assert all(path in used for path in shipped)
