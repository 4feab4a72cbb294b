import itertools
import math

import numpy as np
import pytest
import torch

from capo_ds.advantages import advantages
from capo_ds.config import ObjectiveConfig
from capo_ds.objective import (
    importance_weights,
    make_objective,
    token_objective,
    token_weights,
)
from capo_ds.objectives import Tokens


def terms_of(log_probs, behaviour, reference, advantages, config, importance=None):
    """What `token_objective` makes of the config's own surrogate; all tokens count."""
    mask = torch.ones_like(log_probs, dtype=torch.bool)
    tokens = Tokens(log_probs, behaviour, advantages, mask)
    return token_objective(make_objective(config), tokens, reference, config, importance)


def test_advantages_by_hand():
    rewards = torch.tensor([[1.0, -0.5, -1.0, 1.0], [0.3, 0.3, 0.3, 0.3]])
    plain = advantages(rewards, scale="none")
    torch.testing.assert_close(plain[0], torch.tensor([0.875, -0.625, -1.125, 0.875]))
    scaled = advantages(rewards)
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
        terms = terms_of(log_probs, torch.zeros(1, 4), None, torch.tensor([advantage]), config)
        torch.testing.assert_close(terms.value, torch.tensor([value]))
        assert terms.clipped.tolist() == [clipped]
        (gradient,) = torch.autograd.grad(terms.value.sum(), log_probs)
        assert (gradient == 0).tolist() == [clipped]  # a clipped token has no gradient


def test_kl_is_k3_and_lowers_the_objective():
    config = ObjectiveConfig(kl_weight=0.5)
    log_probs = torch.tensor([[-1.0, -2.0]])
    reference = torch.tensor([[-1.5, -2.0]])
    terms = terms_of(log_probs, log_probs, reference, torch.tensor([0.0]), config)
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
        terms_of(*arguments),
        terms_of(*arguments, torch.tensor([[2.0]])),
    )
    torch.testing.assert_close(weighted.value - plain.value, torch.full((1, 2), 3.0))
    torch.testing.assert_close(weighted.kl, plain.kl)


class TestNoAdvantageFromRounding:
    """What differs from the mean, or from the rest of its group, by rounding has advantage 0."""

    AT_THE_MEAN = (-0.46, -1.0, -0.45, -1.0, -0.5, -0.95, -0.48, 1.0)

    @pytest.mark.parametrize("scale", ["group", "none"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("unit", [1e-12, 1e-6, 1.0, 3.0, 1e6, 1e12])
    def test_a_sample_at_the_mean(self, unit, dtype, scale):
        rewards = unit * torch.tensor([self.AT_THE_MEAN], dtype=torch.float64)
        values = advantages(rewards.to(dtype), scale=scale)
        expected = [1, -1, 1, -1, -1, -1, 0, 1]
        assert values.dtype == dtype and values.sign().tolist() == [expected]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("count", [1, 2, 3, 7, 10, 49])
    @pytest.mark.parametrize("value", [0.1, -0.7, 1e-6, 1e6 + 0.1, 1e-300, 0.0])
    def test_equal_rewards(self, value, count, dtype):
        rewards = torch.full((1, count), value, dtype=dtype)
        for scale in ("group", "none"):
            assert advantages(rewards, scale=scale).eq(0).all()

    @pytest.mark.parametrize("sizes", [(0.1, 0.2, 0.3), (0.7, 0.1, 0.9), (1e3, 0.1, 0.7)])
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_sums_in_another_order(self, sizes, dtype):
        """Also float32 sums that come as Python numbers, beside the exact one."""
        orders = [sum(map(dtype, order), dtype(0)) for order in itertools.permutations(sizes)]
        rewards = torch.tensor([[*map(float, orders), math.fsum(sizes)]], dtype=torch.float64)
        assert len(set(rewards[0].tolist())) > 1
        for scale in ("group", "none"):
            assert advantages(rewards, scale=scale).eq(0).all()

    def test_sums_of_large_terms_that_cancel(self):
        rewards = torch.tensor([[0.1, 0.1 + 1e-10, 0.1 - 1e-10, 0.1]], dtype=torch.float64)
        assert advantages(rewards).ne(0).any()
        rounding = torch.full((1, 4), 1e6 * 2.0**-52, dtype=torch.float64)
        assert advantages(rewards, rounding=rounding).eq(0).all()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_real_differences_under_a_large_offset_count(self, dtype):
        steps = torch.tensor([[0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
        expected = advantages(steps)
        for offset in (1e6, -1e6, 2.0**20):
            rewards = (offset + steps).to(dtype)
            torch.testing.assert_close(advantages(rewards).double(), expected)
        tiny = 1.0 + 1e-9 * steps
        torch.testing.assert_close(advantages(tiny), expected, rtol=1e-5, atol=0)

    def test_scale_does_not_matter(self):
        rewards = torch.tensor([[0.3, -0.2, 0.9, 0.1]], dtype=torch.float64)
        expected = advantages(rewards)
        for unit in (1e-300, 1e-160, 1e-6, 1e6, 1e160, 1e300):
            torch.testing.assert_close(advantages(unit * rewards), expected)

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_no_reward(self, bad):
        with pytest.raises(ValueError, match="NaN or infinite"):
            advantages(torch.tensor([[1.0, bad]]))


def surrogate_of_the_papers(log_ratio, advantage, low, high, dual):
    """Schulman et al. 2017 eq. 7; Ye et al. 2020 eq. 5 for negative advantages."""
    ratio = math.exp(log_ratio)
    inner = min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)
    return max(inner, dual * advantage) if dual and advantage < 0 else inner


@pytest.mark.parametrize("dual", [None, 1.1, 3.0])
@pytest.mark.parametrize("advantage", [1.5, -0.7])
def test_objective_gradient_and_marks_against_the_papers_formula(dual, advantage):
    config = ObjectiveConfig(clip_low=0.2, clip_high=0.28, kl_weight=0.0, dual_clip=dual)
    points = torch.linspace(-25.0, 19.9, 97, dtype=torch.float64)[None]
    points = torch.cat([points, torch.linspace(-0.5, 1.5, 97, dtype=torch.float64)[None]], 1)
    log_probs = points.clone().requires_grad_()
    terms = terms_of(
        log_probs, torch.zeros_like(points), None, points.new_tensor([advantage]), config
    )
    formula = [surrogate_of_the_papers(x, advantage, 0.2, 0.28, dual) for x in points[0].tolist()]
    torch.testing.assert_close(terms.value, points.new_tensor([formula]), rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(terms.value.sum(), log_probs)
    assert (gradient == 0).equal(terms.clipped)
    kept = ~terms.clipped
    torch.testing.assert_close(gradient[kept], advantage * points.exp()[kept], rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("distance", [15.0, 25.0, 60.0, 89.0, 800.0, 1e4])
@pytest.mark.parametrize("advantage", [1.0, -1.0, 0.0])
def test_far_off_policies_have_finite_gradients(dtype, distance, advantage):
    config = ObjectiveConfig(kl_weight=0.1, dual_clip=3.0 if advantage < 0 else None)
    log_probs = torch.tensor([[-1.0 - distance, -1.0]], dtype=dtype, requires_grad=True)
    other = torch.tensor([[-1.0, -1.0 - distance]], dtype=dtype)
    terms = terms_of(log_probs, other, other, log_probs.new_tensor([advantage]), config)
    (gradient,) = torch.autograd.grad(terms.value.sum(), log_probs)
    assert all(x.isfinite().all() for x in (terms.value, terms.ratio, terms.kl, gradient))
    # Above the reference the KL term pulls down by 1, and no clip touches it.
    assert gradient[0, 1].item() == pytest.approx(-0.1, rel=1e-5)
    if distance <= 20:
        expected = advantage * math.exp(-distance) * (advantage > 0)
        expected += 0.1 * (math.exp(distance) - 1)
        assert gradient[0, 0].item() == pytest.approx(expected, rel=1e-5)
    weights = importance_weights(log_probs.detach() - other, "sequence", 2.0)
    assert weights.isfinite().all()


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e30, 1.5e308])
def test_advantages_know_no_scale_of_rewards(scale):
    rewards = torch.tensor([[0.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
    expected = advantages(rewards)
    assert torch.allclose(advantages(rewards * scale), expected, rtol=1e-12, atol=0)
