"""Each objective that docs/objectives.md names, against its paper's formula in float64."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from capo_ds.advantages import advantages
from capo_ds.config import ConfigError, ObjectiveConfig, parse_config
from capo_ds.objective import make_objective, step_advantages, token_objective, token_weights
from capo_ds.objectives import Tokens
from capo_ds.own_code import PartError, place, told_whole

PAGE = Path(__file__).resolve().parents[2] / "docs" / "objectives.md"
ROW = re.compile(r"\| ([^|]+?) \|[^|]*\| `(\{[^|]*\})` \|")
KEYS = {name: yaml.safe_load(keys) for name, keys in ROW.findall(PAGE.read_text())}

P, G, T, LONGEST = 3, 4, 7, 9  # prompts, responses each, tokens in the tensor, max_new_tokens


def responses():
    """Rewards (P, G), log-probabilities of both policies (P G, T) and the mask of the tokens."""
    random = torch.Generator().manual_seed(3)
    rewards = torch.randn(P, G, generator=random, dtype=torch.float64) + torch.arange(P)[:, None]
    behaviour = -2 * torch.rand(P * G, T, generator=random, dtype=torch.float64)
    # Ratios far beyond every clip, on both sides.
    log_probs = behaviour + 0.4 * torch.randn(P * G, T, generator=random, dtype=torch.float64)
    lengths = torch.randint(1, T + 1, (P * G,), generator=random)
    return rewards, log_probs.requires_grad_(), behaviour, torch.arange(T) < lengths[:, None]


def ours(settings, rewards, log_probs, behaviour, mask):
    """J as the learner forms it: the mean over samples of w_i sum_t term_it."""
    config = ObjectiveConfig(**({"kl_weight": 0.0} | settings))
    objective = make_objective(config)
    rounding = torch.zeros_like(rewards)
    values = step_advantages(objective, config, rewards, rounding).flatten()
    tokens = Tokens(log_probs, behaviour, values, mask)
    terms = token_objective(objective, tokens, None, config)
    lengths = mask.sum(1).double()
    total = float(lengths.sum())
    weights = token_weights(lengths, config.loss_aggregation, len(mask), total, LONGEST)
    return ((terms.value * mask).sum(1) * weights).mean(), terms


def group_deviations(rewards):
    return [[(r - row.mean()) / row.std() for r in row] for row in rewards]


def clip(x, low, high):
    return torch.minimum(torch.maximum(x, x.new_tensor(1 - low)), x.new_tensor(1 + high))


def ppo(ratio, advantage, low, high):
    return torch.minimum(ratio * advantage, clip(ratio, low, high) * advantage)


def rows_of(advantages, log_probs, behaviour, mask):
    """(A, log-probabilities, those of behaviour) of each response, without padding."""
    flat = [a for row in advantages for a in row]
    rows = zip(flat, log_probs, behaviour, mask, strict=True)
    return [(a, new[m], old[m]) for a, new, old, m in rows]


def grpo(rewards, *rest, deviations=group_deviations, low=0.2, high=0.2):
    """1/G sum_i 1/|o_i| sum_t min(r A, clip(r) A): DeepSeekMath, eq. 3."""
    rows = rows_of(deviations(rewards), *rest)
    return sum(ppo((n - o).exp(), a, low, high).mean() for a, n, o in rows) / len(rows)


def dr_grpo(rewards, *rest):
    """No division by length nor by the deviation (Liu et al. 2025): sums over a constant."""
    rows = rows_of([[r - row.mean() for r in row] for row in rewards], *rest)
    total = sum(ppo((n - o).exp(), a, 0.2, 0.2).sum() for a, n, o in rows)
    return total / len(rows) / LONGEST


def dapo(rewards, *rest):
    """1/sum |o_i| sum_i sum_t, two clips: Yu et al. 2025, eq. 8."""
    rows = rows_of(group_deviations(rewards), *rest)
    tokens = sum(len(new) for _, new, _ in rows)
    return sum(ppo((n - o).exp(), a, 0.2, 0.28).sum() for a, n, o in rows) / tokens


def gspo(rewards, *rest):
    """1/G sum_i min(s A, clip(s) A), s = (pi / pi_old)^(1/|y|): Zheng et al. 2025, eqs. 5, 7."""
    rows = rows_of(group_deviations(rewards), *rest)
    ratios = [(a, ((n.sum() - o.sum()) / len(n)).exp()) for a, n, o in rows]
    return sum(ppo(s, a, 3e-4, 4e-4) for a, s in ratios) / len(rows)


def cispo(rewards, *rest):
    """1/sum |o_i| sum_i sum_t sg(clip(r)) A log pi: MiniMax-M1, eqs. 4, 5, no lower clip."""
    rows = rows_of(group_deviations(rewards), *rest)
    tokens = sum(len(new) for _, new, _ in rows)
    weighted = (((n - o).exp().detach().clamp(max=1.2) * a * n).sum() for a, n, o in rows)
    return sum(weighted) / tokens


def rloo(rewards, *rest):
    """Each reward less the mean of the group's others: Ahmadian et al. 2024, eq. 10."""

    def others(rewards):
        return [
            [r - torch.cat([row[:i], row[i + 1 :]]).mean() for i, r in enumerate(row)]
            for row in rewards
        ]

    return grpo(rewards, *rest, deviations=others)


def reinforce_pp(rewards, *rest):
    """(r - mean of the batch) / deviation of the batch: Hu et al. 2025."""
    return grpo(rewards, *rest, deviations=lambda r: (r - r.mean()) / r.std())


def reinforce_pp_baseline(rewards, *rest):
    """A' = r - mean of the group, divided by the batch's deviation of A': likewise."""

    def normalised(rewards):
        above = torch.stack([row - row.mean() for row in rewards])
        return (above - above.mean()) / above.std()

    return grpo(rewards, *rest, deviations=normalised)


def group_mean_batch_deviation(rewards, *rest):
    """r - mean of the group, over the deviation of all rewards: Tricks or traps, 2025."""
    means = rewards.mean(1, keepdim=True)
    return grpo(rewards, *rest, deviations=lambda r: (r - means) / r.std())


def reinforce(rewards, *rest):
    """sum_t r pi/pi_old: the reward itself, without baseline or clip."""
    return grpo(rewards, *rest, deviations=lambda r: r, low=1, high=1e9)


FORMULAS = {
    "GRPO": grpo,
    "Dr. GRPO": dr_grpo,
    "DAPO": dapo,
    "GSPO": gspo,
    "CISPO": cispo,
    "RLOO": rloo,
    "REINFORCE++": reinforce_pp,
    "REINFORCE++ with baseline": reinforce_pp_baseline,
    "Lite PPO": group_mean_batch_deviation,
    "REINFORCE": reinforce,
}


def test_the_page_lists_what_is_tested_here():
    assert KEYS.keys() == FORMULAS.keys()


@pytest.mark.parametrize("name", FORMULAS)
def test_objective_and_gradient_are_the_papers(name):
    _, log_probs, _, mask = given = responses()
    expected = FORMULAS[name](*given)
    value, _ = ours(KEYS[name], *given)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(value, log_probs)
    (known,) = torch.autograd.grad(expected, log_probs)
    assert known[mask].ne(0).any()
    torch.testing.assert_close(gradient, known, rtol=1e-10, atol=1e-14)
    assert gradient[~mask].eq(0).all()


@pytest.mark.parametrize("name", FORMULAS)
def test_marks_say_where_the_surrogate_has_no_gradient(name):
    rewards, log_probs, _, mask = given = responses()
    _, terms = ours(KEYS[name], *given)
    values = step_advantages(
        None, ObjectiveConfig(**KEYS[name]), rewards, torch.zeros_like(rewards)
    ).flatten()
    (gradient,) = torch.autograd.grad((terms.value * mask).sum(), log_probs)
    moved = mask & (values != 0)[:, None]
    assert terms.silent[moved].equal(gradient[moved] == 0)
    assert terms.clipped[mask].any() == (name != "REINFORCE")


@pytest.mark.parametrize("name", ["grpo", "gspo", "cispo"])
@pytest.mark.parametrize("distance", [25.0, 89.0, 800.0, 1e4])
def test_far_off_policies_have_finite_gradients(name, distance):
    log_probs = torch.tensor([[-1.0 - distance, -1.0], [-1.0, -1.0]], requires_grad=True)
    behaviour = torch.tensor([[-1.0, -1.0 - distance], [-1.0 - distance, -1.0]])
    for sign in (1.0, -1.0):
        config = ObjectiveConfig(name=name, kl_weight=0.0)
        mask = torch.ones(2, 2, dtype=torch.bool)
        tokens = Tokens(log_probs, behaviour, torch.full((2,), sign), mask)
        terms = token_objective(make_objective(config), tokens, None, config)
        (gradient,) = torch.autograd.grad(terms.value.sum(), log_probs)
        assert terms.value.isfinite().all() and gradient.isfinite().all()


class TestBatchAdvantages:
    REWARDS = torch.tensor([[1.0, 1.0], [0.0, 1.0], [-1.0, -0.5]], dtype=torch.float64)

    def test_a_step_of_equal_rewards_has_none(self):
        rewards = torch.full((4, 8), 0.1)
        for scale in ("batch", "batch_rewards", "group"):
            for baseline in ("group", "batch", "leave_one_out"):
                assert advantages(rewards, baseline, scale).eq(0).all()

    def test_noise_of_one_group_stays_zero_beside_real_differences(self):
        rewards = self.REWARDS.clone()
        rewards[0] = torch.tensor([0.1 + 0.2, 0.3])
        values = advantages(rewards, "group", "batch")
        assert values[0].eq(0).all() and values[1:].ne(0).all()

    def test_no_baseline_keeps_rewards_and_one_of_zero(self):
        assert advantages(self.REWARDS, "none", "none").equal(self.REWARDS)

    def test_deviations_do_not_overflow(self):
        expected = advantages(self.REWARDS, "group", "batch")
        for unit in (1e-300, 1e300):
            values = advantages(unit * self.REWARDS, "group", "batch")
            torch.testing.assert_close(values, expected)


class TestNames:
    def test_old_words_for_the_scale(self):
        assert ObjectiveConfig(scale_advantages=True).scale_advantages == "group"
        assert ObjectiveConfig(scale_advantages=False).scale_advantages == "none"

    @pytest.mark.parametrize("name", ["dapo", "Dr-GRPO", "reinforce++", "rloo"])
    def test_a_papers_name_is_answered_with_its_keys(self, name):
        with pytest.raises(ConfigError, match=rf"objective.name.*{re.escape(name)} is name: grpo"):
            parse_config({"objective": {"name": name}})

    def test_dual_clip_of_cispo(self):
        with pytest.raises(ConfigError, match=r"objective.dual_clip: 3 changes nothing"):
            parse_config({"objective": {"name": "cispo", "dual_clip": 3}})


OWN = """
import torch
from dataclasses import dataclass
from typing import Annotated
from pydantic import Field
from capo_ds.objectives import Surrogate

def soft(tokens, settings, sharpness: Annotated[float, Field(gt=0)] = 1.0, flat=False):
    ratio = tokens.log_ratio.exp()
    return torch.sigmoid(sharpness * (ratio - 1)) * tokens.advantages[:, None]

@dataclass
class Best:
    share: float

    def advantages(self, rewards):
        return (rewards == rewards.amax(1, keepdim=True)).double() - self.share

    def __call__(self, tokens, settings):
        return Surrogate(tokens.log_probs.sum(1, keepdim=True) * tokens.advantages[:, None])

def detached(tokens, settings):
    return tokens.log_probs.detach()

def summed(tokens, settings):
    return tokens.log_probs.sum()

def nothing(tokens, settings): ...

def mismarked(tokens, settings):
    return Surrogate(tokens.log_probs, silent=tokens.mask[0])

def broken(tokens, settings):
    return tokens.nothing

def leaving(tokens, settings):
    raise SystemExit(3)

class Worthless:
    def advantages(self, rewards):
        return [1.0]

    def __call__(self, tokens, settings):
        return tokens.log_probs

class Endless(Worthless):
    def advantages(self, rewards):
        return rewards / 0
"""


class TestOwn:
    @pytest.fixture
    def own(self, tmp_path):
        file = tmp_path / "objectives_of_mine.py"
        file.write_text(OWN)
        return lambda name, **options: {"name": f"{file}:{name}", "options": options}

    def test_a_function_with_an_option(self, own):
        rewards, log_probs, behaviour, _ = given = responses()
        _, terms = ours(own("soft", sharpness=2), *given)
        values = advantages(rewards).flatten()
        expected = torch.sigmoid(2 * ((log_probs - behaviour).exp() - 1)) * values[:, None]
        torch.testing.assert_close(terms.value, expected)
        assert not terms.clipped.any() and not terms.silent.any()

    def test_a_class_with_advantages_of_its_own(self, own):
        rewards, log_probs, *_ = given = responses()
        _, terms = ours(own("Best", share=0.25), *given)
        best = (rewards == rewards.amax(1, keepdim=True)).double() - 0.25
        expected = (log_probs.sum(1) * best.flatten())[:, None].expand(-1, T)
        torch.testing.assert_close(terms.value, expected)

    @pytest.mark.parametrize(
        ("name", "options", "told"),
        [
            (
                "soft",
                {"sharp": 1},
                "objective.options.sharp: .* did you mean sharpness",
            ),
            ("soft", {"sharpness": 0}, "objective.options.sharpness: bad value 0 .*greater than 0"),
            ("soft", {"sharpness": "much"}, "objective.options.sharpness: bad value 'much'"),
            ("soft", {"flat": 1}, "objective.options.flat: bad value 1 .*boolean"),
            ("Best", {}, "objective.options.share: .* needs it"),
            ("Best", {"share": True}, "objective.options.share: bad value True"),
            ("missing", {}, "objective.name: .* has no function 'missing'"),
        ],
    )
    def test_options_that_do_not_fit(self, own, name, options, told):
        with pytest.raises(ConfigError, match=told):
            make_objective(ObjectiveConfig(**own(name, **options)))

    def test_options_of_one_that_ships(self):
        with pytest.raises(ConfigError, match=r"objective.options.x: gspo has no such option"):
            make_objective(ObjectiveConfig(name="gspo", options={"x": 1}))

    @pytest.mark.parametrize(
        ("name", "told"),
        [
            ("detached", "no gradient"),
            ("summed", r"tensor of \(12, 7\) terms"),
            ("nothing", "is NoneType"),
            ("mismarked", r"the silent must be a tensor of \(12, 7\) marks.* is one of \(7,\)"),
            ("broken", "AttributeError: 'Tokens' object has no attribute 'nothing'"),
            ("leaving", "SystemExit: 3"),
            ("Worthless", r"its advantages must be .* they are of \(1,\)"),
            ("Endless", "its advantages must be .* they are NaN or Inf in part"),
        ],
    )
    def test_what_is_no_surrogate_is_told_under_its_name(self, own, name, told):
        settings = own(name)
        with pytest.raises(PartError, match=told) as error:
            ours(settings, *responses())
        assert str(error.value).startswith(f"objective.name: {settings['name']}: ")
        assert len(str(error.value).splitlines()) == 1 and told_whole(error.value)
        assert ("return tokens.nothing" in place(error.value)) == (name == "broken")
