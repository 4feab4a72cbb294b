"""top_p, top_k, min_p: which tokens may be drawn, how often, and what is told of them."""

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from capo_ds.config import ConfigError, parse_config
from capo_ds.rollout.base import Draw, Truncation, request_settings
from capo_ds.rollout.drawing import draw, truncate

CASES = [Truncation(top_p=0.7), Truncation(top_k=5), Truncation(min_p=0.2)]
CASES += [Truncation(0.8, 10, 0.05), Truncation(top_p=1e-6), Truncation(top_k=1000)]


def logits(rows: int = 50) -> torch.Tensor:
    return 2 * torch.randn(rows, 40, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("truncation", CASES)
def test_the_distribution_is_transformers(truncation):
    warpers = LogitsProcessorList()
    if truncation.min_p:
        warpers.append(MinPLogitsWarper(truncation.min_p))
    if truncation.top_k:
        warpers.append(TopKLogitsWarper(truncation.top_k))
    if truncation.top_p < 1:
        warpers.append(TopPLogitsWarper(truncation.top_p))
    expected = warpers(None, logits()).softmax(-1)
    torch.testing.assert_close(truncate(logits().log_softmax(-1), truncation).exp(), expected)


@pytest.mark.parametrize("truncation", CASES)
def test_draws_follow_it_and_do_not_depend_on_the_batch(truncation):
    count = 4000
    one = logits(1).repeat(count, 1)
    uniform = torch.as_tensor(np.random.default_rng(0).random(count))
    tokens, log_probs, entropy = draw(one, uniform, 0.9, truncation)
    distribution = truncate((one[:1] / 0.9).log_softmax(-1), truncation)[0]
    torch.testing.assert_close(log_probs, distribution[tokens])
    assert torch.isfinite(log_probs).all()
    counts, expected = torch.bincount(tokens, minlength=40), distribution.exp() * count
    assert not counts[expected == 0].any()
    likely = expected > 5
    chi_square = ((counts - expected)[likely] ** 2 / expected[likely]).sum()
    assert chi_square < 2 * likely.sum() + 20
    known = distribution[distribution.isfinite()]
    torch.testing.assert_close(entropy[0], -(known.exp() * known).sum())
    alone = [int(draw(one[:1], uniform[n : n + 1], 0.9, truncation)[0]) for n in range(20)]
    assert alone == tokens[:20].tolist()


def test_greedy_decoding_knows_none():
    whole, cut = (draw(logits(), torch.zeros(50), 0.0, t) for t in (Truncation(), CASES[3]))
    assert all(map(torch.equal, whole, cut))


def test_vllm_is_asked_for_the_same():
    (asked,) = request_settings([Draw(0, 0, 0)], 4, 0.9, CASES[3])
    assert asked.items() >= {"top_p": 0.8, "top_k": 10, "min_p": 0.05, "n": 4}.items()


@pytest.mark.parametrize(
    "settings",
    [
        {"rollout": {"top_p": 0}},
        {"rollout": {"top_p": 1.1}},
        {"rollout": {"top_k": -1}},
        {"rollout": {"min_p": 2}},
        {"evaluation": {"top_p": 0.9}},
    ],
)
def test_settings_that_cannot_be(settings):
    with pytest.raises(ConfigError, match=r"top_|min_p"):
        parse_config(settings)
