import math

import pytest
import torch

from capo_ds.config import ObjectiveConfig
from capo_ds.objective import (
    group_advantages,
    importance_weights,
    token_objective,
    token_weights,
)


def test_advantages_by_hand():
    rewards = torch.tensor([[1.0, -0.5, -1.0, 1.0], [0.3, 0.3, 0.3, 0.3]])
    plain = group_advantages(rewards, scale=False)
    torch.testing.assert_close(plain[0], torch.tensor([0.875, -0.625, -1.125, 0.875]))
    scaled = group_advantages(rewards, scale=True)
    deviation = math.sqrt((0.875**2 * 2 + 0.625**2 + 1.125**2) / 3)
    torch.testing.assert_close(scaled[0], plain[0] / deviation)
    assert scaled[1].eq(0).all()  # not rounding noise divided by rounding noise


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean", "fixed_length"])
def test_token_weights_sum_to_the_named_objective(aggregation):
    lengths = torch.tensor([1.0, 4.0, 0.0, 7.0])
    mask = torch.arange(8)[None] < lengths[:, None]
    terms = torch.randn(4, 8)
    weights = token_weights(lengths, aggregation, samples=4, tokens=12.0, max_length=10)
    value = ((terms * mask).sum(1) * weights).mean()
    sums = (terms * mask).sum(1)
    expected = {
        "sequence_mean": (sums / lengths.clamp(min=1)).mean(),
        "token_mean": sums.sum() / 12,
        "fixed_length": sums.sum() / (4 * 10),
    }[aggregation]
    torch.testing.assert_close(value, expected)


def test_clip_is_one_sided_for_each_sign():
    config = ObjectiveConfig(clip_low=0.2, clip_high=0.4, kl_weight=0.0)
    ratios = torch.tensor([[0.5, 1.0, 1.3, 2.0]])
    log_probs = ratios.log().requires_grad_()
    for advantage, value, clipped in [
        (1.0, [0.5, 1.0, 1.3, 1.4], [False, False, False, True]),
        (-1.0, [-0.8, -1.0, -1.3, -2.0], [True, False, False, False]),
    ]:
        terms = token_objective(
            log_probs, torch.zeros(1, 4), None, torch.tensor([advantage]), config
        )
        torch.testing.assert_close(terms.value, torch.tensor([value]))
        assert terms.clipped.tolist() == [clipped]
        (gradient,) = torch.autograd.grad(terms.value.sum(), log_probs)
        assert (gradient == 0).tolist() == [clipped]  # a clipped token has no gradient


def test_kl_is_k3_and_lowers_the_objective():
    config = ObjectiveConfig(kl_weight=0.5)
    log_probs = torch.tensor([[-1.0, -2.0]])
    reference = torch.tensor([[-1.5, -2.0]])
    terms = token_objective(log_probs, log_probs, reference, torch.tensor([0.0]), config)
    expected = math.exp(-0.5) + 0.5 - 1
    torch.testing.assert_close(terms.kl, torch.tensor([[expected, 0.0]]))
    torch.testing.assert_close(terms.value, torch.tensor([[-0.5 * expected, 0.0]]))


def test_importance_weights_are_truncated_by_token_or_by_response():
    ratios = torch.tensor([[0.5, 1.5, 3.0], [1.2, 1.0, 1.0]])
    assert importance_weights(ratios.log(), "none", 2.0) is None
    by_token = importance_weights(ratios.log(), "token", 2.0)
    torch.testing.assert_close(by_token, torch.tensor([[0.5, 1.5, 2.0], [1.2, 1.0, 1.0]]))
    by_response = importance_weights(ratios.log(), "sequence", 2.0)
    torch.testing.assert_close(by_response, torch.tensor([[2.0], [1.2]]))  # 0.5 * 1.5 * 3 = 2.25


def test_importance_weights_multiply_the_surrogate_and_not_the_kl_term():
    config = ObjectiveConfig(kl_weight=0.5)
    log_probs = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    reference, advantage = torch.tensor([[-1.5, -2.0]]), torch.tensor([3.0])
    arguments = log_probs, log_probs.detach(), reference, advantage, config
    plain, weighted = (
        token_objective(*arguments),
        token_objective(*arguments, torch.tensor([[2.0]])),
    )
    torch.testing.assert_close(weighted.value - plain.value, torch.full((1, 2), 3.0))
    torch.testing.assert_close(weighted.kl, plain.kl)
