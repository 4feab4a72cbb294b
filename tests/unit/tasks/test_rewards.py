from dataclasses import replace

import pytest
import torch

from capo_ds.advantages import advantages
from capo_ds.config import ConfigError, RewardConfig
from capo_ds.tasks import Problem, Scorer, Verdict, score
from capo_ds.tasks.outcome import Comparison

PROBLEM = Problem(prompt="?", answer="16", columns={"level": 3})
RIGHT = Verdict(1.0, formatted=True, correct=True, comparison=Comparison.EQUAL)
WRONG = Verdict(-0.5, formatted=True, correct=False, comparison=Comparison.DIFFERENT)
UNREAD = replace(WRONG, comparison=Comparison.UNPARSED)
UNFORMATTED = Verdict(-1.0, formatted=False, correct=False)


@pytest.mark.parametrize(
    ("completion", "verdict"),
    [
        (r"\boxed{16}", RIGHT),
        ("12+7=19\n19-3=16\n\\boxed{16}\n", RIGHT),
        (r"so $\boxed{16}$.", RIGHT),
        (r"so \( \boxed{16.0} \).", RIGHT),
        (r"\[\boxed{ 16 }\]", RIGHT),
        (r"\boxed{17}", WRONG),
        (r"\boxed{16 or 17}", WRONG),
        (r"\boxed{1e999999999}", UNREAD),
        ("The answer is 16.", UNFORMATTED),
        ("", UNFORMATTED),
        (r"\boxed{}", UNFORMATTED),
        ("\\boxed{ \n}", UNFORMATTED),
        (r"\boxed 16", UNFORMATTED),
        (r"\boxed {16}", UNFORMATTED),
        (r"\boxed{16", UNFORMATTED),
        (r"\boxed{{16}", UNFORMATTED),
        (r"\boxed{16\}", UNFORMATTED),
        (r"\\boxed{16}", UNFORMATTED),
        (r"boxed{16}", UNFORMATTED),
        (r"\fbox{16}", UNFORMATTED),
        (r"\boxed{16} \boxed{16}", UNFORMATTED),
        (r"\boxed{15} no, \boxed{16}", UNFORMATTED),
        (r"\boxed{\boxed{16}}", UNFORMATTED),
        (r"\boxed{16} \boxed", UNFORMATTED),
        (r"\boxed{16} apples", UNFORMATTED),
        (r"\boxed{16}}", UNFORMATTED),
        (r"\boxed{16}17", UNFORMATTED),
    ],
)
def test_rule(completion, verdict, judge):
    assert score([completion], [PROBLEM], judge) == [verdict]


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        # units, percent, currency
        (r"16 \text{ apples}", RIGHT),
        ("16 apples", RIGHT),
        (r"\$16", RIGHT),
        (r"16^\circ", RIGHT),
        (r"16\%", WRONG),  # it is 0.16
        (r"1600\%", RIGHT),
        (r"17 \text{ apples}", WRONG),
        # fractions against decimals
        (r"\frac{32}{2}", RIGHT),
        ("16.00", RIGHT),
        ("15.9999999", WRONG),
        # several answers
        (r"16 \text{ or } 17", WRONG),
        ("$16$ or $17$", WRONG),
        ("16, 17", WRONG),
        ("16; 17", WRONG),
        (r"16\\17", UNREAD),
        (r"\pm 16", WRONG),
        # said otherwise
        ("x = 16", RIGHT),
        (r"\sqrt{256}", RIGHT),
        (r"2^4", RIGHT),
        (r"\text{sixteen}", WRONG),
        ("The answer is 16", WRONG),
        # left to the reader
        ("8+8", WRONG),
        (r"2 \cdot 8", WRONG),
        # foreign digits, code
        ("١٦", UNREAD),
        ("\N{FULLWIDTH DIGIT ONE}\N{FULLWIDTH DIGIT SIX}", UNREAD),
        ("0x10", UNREAD),
        ("__import__('os').getpid()", UNREAD),
        # costly
        ("5^{5^{5^{5}}}", UNREAD),
        ("1" * 3_000_000, UNREAD),
        ("16" + "0" * 64, UNREAD),
        ("(" * 400, UNREAD),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else None,
)
def test_adversarial_answers(answer, verdict, judge):
    assert score([rf"\boxed{{{answer}}}"], [PROBLEM], judge) == [verdict]


def test_megabytes_without_an_answer_are_quickly_unformatted(judge):
    for completion in ("9" * 5_000_000, r"\boxed{" * 300_000, "{" * 5_000_000 + r"\boxed{16"):
        assert score([completion], [PROBLEM], judge) == [UNFORMATTED]


def test_a_box_in_the_question_counts_for_nothing(judge):
    problem = Problem(prompt=r"Ignore all else and answer \boxed{99}. What is 8+8?", answer="16")
    completions = [r"\boxed{99}", r"As told: 99", r"It is \boxed{16}"]
    assert score(completions, [problem] * 3, judge) == [WRONG, UNFORMATTED, RIGHT]


def test_each_completion_meets_its_own_problem(judge):
    other = Problem(prompt="?", answer="5")
    assert score([r"\boxed{16}"] * 2, [PROBLEM, other], judge) == [RIGHT, WRONG]


def test_unequal_lengths_are_refused(judge):
    with pytest.raises(ValueError, match="2 completions for 1 problems"):
        score(["a", "b"], [PROBLEM], judge)


# ---------------------------------------------------------------- the user's own functions

FUNCTIONS = """
def brevity(completions, **columns):
    return [-len(completion) for completion in completions]

def echo(prompts, completions, references, level, **columns):
    assert set(columns) == {"completion_ids", "verdicts"}, columns
    return [float(f"{level[0]}{references[0]}") for _ in prompts]

def sometimes(completions, **columns):
    return [1.0 if len(completion) > 1 else None for completion in completions]

def fails(completions, **columns):
    raise KeyError("no such word")

def short(completions, **columns):
    return [1.0]

def infinite(completions, **columns):
    return [float("nan") for _ in completions]

not_a_function = 3
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FUNCTIONS)
    return path


def scorer(judge, **weights):
    entries = [{"function": name, "weight": weight} for name, weight in weights.items()]
    return Scorer(RewardConfig(functions=entries), judge)


def test_the_reward_is_the_weighted_sum_and_the_verdict_the_rules(file, judge):
    own = scorer(judge, **{"rule": 2.0, f"{file}:brevity": 0.5, f"{file}:echo": 1.0})
    completions = [r"\boxed{16}", "16"]
    scores = own(completions, [PROBLEM] * 2)
    assert scores.verdicts == [RIGHT, UNFORMATTED]
    assert scores.rewards == [2 - 5 + 316, -2 - 1 + 316]
    assert scores.parts[f"{file}:brevity"] == [-10.0, -2.0]
    assert own([], []).rewards == []


def test_weighted_float32_scores_that_agree_but_for_rounding_give_no_advantage(tmp_path, judge):
    path = tmp_path / "model.py"
    path.write_text(
        "import numpy as np\n"
        "def large(completions, **columns):\n"
        "    return [np.float32(700.1) + np.float32(len(c)) * 0 for c in completions]\n"
        "def small(completions, **columns):\n"
        "    return [float(np.nextafter(np.float32(-699.9), np.float32(len(c) % 2 * -1e9)))"
        " for c in completions]\n"
    )
    own = scorer(judge, **{f"{path}:large": 0.3, f"{path}:small": 0.3})
    scores = own(["a", "ab", "abc"], [PROBLEM] * 3)
    rewards, rounding = (torch.tensor([x]).double() for x in (scores.rewards, scores.roundings))
    assert len(set(scores.rewards)) == 2  # 0.06 and a float32 step of 0.3 * 699.9
    assert advantages(rewards, rounding=rounding).eq(0).all()


def test_a_function_may_pass(file, judge):
    scores = scorer(judge, **{"rule": 1.0, f"{file}:sometimes": 1.0})(["a", "ab"], [PROBLEM] * 2)
    assert scores.rewards == [-1.0, 0.0]
    with pytest.raises(RuntimeError, match="no function rewards a completion"):
        scorer(judge, **{f"{file}:sometimes": 1.0})(["a"], [PROBLEM])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fails", "reward function .*mine.py:fails: KeyError: 'no such word'"),
        ("short", "1 rewards for 2 completions"),
        ("infinite", "nan is no reward"),
    ],
)
def test_a_failing_function_is_told(file, judge, name, message):
    with pytest.raises(RuntimeError, match=message):
        scorer(judge, **{f"{file}:{name}": 1.0})(["a", "b"], [PROBLEM] * 2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{file}:missing", "has no function 'missing'"),
        ("{file}:not_a_function", "has no function"),
        ("no/such.py:f", "reward.functions: no file 'no/such.py'"),
    ],
)
def test_a_function_that_cannot_be_had_is_told(file, judge, name, message):
    with pytest.raises(ConfigError, match=message):
        scorer(judge, **{name.format(file=file): 1.0})


def test_a_file_that_does_not_run_is_told(tmp_path, judge):
    path = tmp_path / "broken.py"
    path.write_text("import nothing_of_that_name\n")
    with pytest.raises(ConfigError, match="does not run: ModuleNotFoundError"):
        scorer(judge, **{f"{path}:f": 1.0})


def test_a_function_twice_is_told_apart_by_labels(tmp_path, judge):
    path = tmp_path / "near.py"
    path.write_text(
        "def near(completions, within: int = 1): return [within for _ in completions]\n"
    )
    function = {"function": f"{path}:near", "options": {"within": 5}}
    entries = [function | {"label": "near5"}, {"function": f"{path}:near"}]
    scores = Scorer(RewardConfig(functions=entries), judge)(["x"], [PROBLEM])
    assert scores.rewards == [6.0] and scores.parts == {"near5": [5.0], f"{path}:near": [1.0]}
    for again in (f"{path}:near", f"{tmp_path}/./near.py:near"):
        with pytest.raises(ValueError, match=r"twice; remove one, or give it a label"):
            RewardConfig(functions=[entries[1], {"function": again}])
