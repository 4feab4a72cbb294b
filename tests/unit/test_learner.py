"""What the learner makes of a sampler whose probabilities are not the trainer's."""

import math

import pytest
import torch

from capo_ds.config import parse_config
from capo_ds.distributed import comm
from capo_ds.distributed.engine import CapoEngine
from capo_ds.learner import Learner
from capo_ds.learning.passes import SEQUENCE_RATIO_SQUARE
from capo_ds.models import load_policy, token_log_probs
from capo_ds.rollout.rollout import Rollout
from capo_ds.telemetry.metrics import Measures, PhaseTimer

pytestmark = pytest.mark.usefixtures("process_group")
SAMPLES, TOKENS = 4, 3


ADVANTAGES = (1.0, -1.0, 0.5, -0.5)


def gradient(
    folder,
    log_ratio: float,
    advantages=ADVANTAGES,
    aggregator: str = "mean",
    ratio_to: str | None = None,
    **rollout,
) -> tuple[torch.Tensor, dict[str, float]]:
    """g~ of responses to which the sampler gave exp(-log_ratio) times the trainer's probability
    at every token; and the metrics."""
    config = parse_config(
        {
            "model": {"path": folder, "lora_rank": 2, "lora_alpha": 4},
            "rollout": {"prompts_per_step": 1, "group_size": SAMPLES} | rollout,
            "objective": {"kl_weight": 0.0, "ratio_to": ratio_to},
            "aggregator": aggregator,
            "deepspeed": "ds_configs/zero0.json",
            "train": {"output_dir": folder},
        }
    )
    policy = load_policy(config.model, seed=0)
    engine = CapoEngine(policy, config, optimizer_steps=2, monitor_dir=folder)
    applied = []
    engine.apply = lambda parts: applied.append(torch.cat([part.flatten() for part in parts])) or 0
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 200, (SAMPLES, 2 * TOKENS), generator=generator)
    mask = torch.ones(SAMPLES, TOKENS, dtype=torch.bool)
    with torch.no_grad():
        log_probs = token_log_probs(policy, ids, torch.ones_like(ids), mask, temperature=1.0)
    rollout = Rollout(
        prompt_ids=ids[:, :TOKENS],
        prompt_mask=mask,
        completion_ids=ids[:, TOKENS:],
        completion_mask=mask,
        log_probs=log_probs - log_ratio,
        entropy=torch.zeros_like(log_probs),
        truncated=~mask[:, 0],
    )
    learner = Learner(config, engine, "device", PhaseTimer())
    batch = learner.prepare(rollout, torch.tensor(advantages), torch.arange(SAMPLES))
    measures = Measures()
    for measured in learner.update(batch, number=0).measures:
        measures.add(measured)
    return applied[0], Measures.merge([measures])


@pytest.mark.parametrize(
    ("correction", "ratio", "weight"),
    [
        ("none", 1.1, 1.0),
        ("token", 1.1, 1.1),
        ("sequence", 1.1, 1.1**TOKENS),
        ("token", 0.2, 0.2),
        ("token", 3.0, 2.0),  # the cap
        ("sequence", 1.5, 2.0),
    ],
)
def test_the_correction_weighs_the_gradient(random_model, correction, ratio, weight):
    plain, _ = gradient(random_model, 0.0)
    weighted, metrics = gradient(random_model, math.log(ratio), importance_correction=correction)
    assert plain.norm() > 0
    torch.testing.assert_close(weighted, weight * plain, rtol=1e-3, atol=1e-6)
    difference = pytest.approx(abs(math.log(ratio)), rel=1e-4)
    assert metrics["rollout/log_prob_difference"] == difference
    assert metrics["rollout/log_prob_difference_max"] == difference
    assert metrics["rollout/importance_ratio"] == pytest.approx(ratio, rel=1e-4)  # raw
    assert metrics["rollout/sequence_ratio"] == pytest.approx(ratio**TOKENS, rel=1e-3)
    assert metrics[SEQUENCE_RATIO_SQUARE] == pytest.approx(ratio ** (2 * TOKENS), rel=1e-3)


@pytest.mark.parametrize(
    ("correction", "ratio", "positive", "negative"),
    [
        ("token", 1.1, 1.1, 1.1),
        ("token", 0.5, 0.5, 0.0),  # clipped from below
        ("token", 1.5, 0.0, 1.5),  # and from above
        ("token", 3.0, 0.0, 2.0),  # the cap
        ("none", 3.0, 0.0, 3.0),
    ],
)
def test_the_ratio_to_the_sampler(random_model, correction, ratio, positive, negative):
    """It weighs each token's gradient, is clipped around the sampler, and truncated at the cap."""
    parts = [
        tuple(advantage if advantage * sign > 0 else 0.0 for advantage in ADVANTAGES)
        for sign in (1, -1)
    ]
    expected = sum(
        weight * gradient(random_model, 0.0, part)[0]
        for weight, part in zip((positive, negative), parts, strict=True)
    )
    found, metrics = gradient(
        random_model, math.log(ratio), ratio_to="sampler", importance_correction=correction
    )
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)
    assert metrics["loss/clip_fraction"] == (0.5 if 0.0 in (positive, negative) else 0)
    told = min(ratio, 2.0) if correction == "token" else ratio
    assert metrics["loss/ratio"] == pytest.approx(told, rel=1e-4)
    assert metrics["rollout/importance_ratio"] == pytest.approx(ratio, rel=1e-4)  # raw


def test_a_sample_whose_gradient_is_nan_is_left_out(random_model):
    whole, metrics = gradient(random_model, 0.0, aggregator="capo")
    assert metrics["capo/dropped"] == 0
    spoilt = (*ADVANTAGES[:3], math.nan)
    left, metrics = gradient(random_model, 0.0, spoilt, "capo")
    assert metrics["capo/dropped"] == 1
    assert left.isfinite().all() and left.norm() > 0
    assert not torch.allclose(left, whole)


def test_nothing_but_nan_ends_the_run(random_model):
    with pytest.raises(comm.PeerError, match=r"solve failed.*every sample's gradient is NaN"):
        gradient(random_model, 0.0, (math.nan,) * SAMPLES, "capo")
