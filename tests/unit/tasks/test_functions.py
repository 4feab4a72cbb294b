"""Reward functions of every kind that a user may write, and what they may return."""

import os
import pickle
import signal
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from capo_ds.config import ConfigError, RewardConfig
from capo_ds.own_code import PartError, told_whole
from capo_ds.plugins import named
from capo_ds.tasks import Problem, Scorer

PROBLEM = Problem(prompt="?", answer="16", columns={"level": 3})
TALK = Problem("?", "16", messages=[{"role": "user", "content": "?"}])
FILE = """
from __future__ import annotations
import asyncio, sys
from dataclasses import dataclass
from functools import partial
import numpy as np
import torch
from neighbour_of_rewards import ONE

open(__file__ + ".runs", "a").write("x")

@dataclass
class Case:
    value: int | None = None

def plain(completions): return [ONE] * len(completions)
def ids(completion_ids, **kwargs): return [sum(row) for row in completion_ids]
def array(completions, **kwargs): return np.ones(len(completions), np.float32)
def tensor(completions, **kwargs): return torch.ones(len(completions), dtype=torch.bfloat16)
def flags(completions, **kwargs): return [True] * len(completions)
def words(completions, **kwargs): return {c: 1.0 for c in completions}
def text(completions, **kwargs): return ["1"] * len(completions)
def single(completions, **kwargs): return 1.0
def never(completions, **kwargs): return [None] * len(completions)
def leaves(completions, **kwargs): sys.exit(0)
def interrupted(completions, **kwargs): raise KeyboardInterrupt
def breaks_off(completions):
    yield 1.0
    sys.exit(0)
def endless(completions):
    while True: yield 1.0
def huge(completions): return [10**400] * len(completions)
def table(completions): return np.ones((len(completions), 1))
def unordered(completions): return frozenset(range(len(completions)))
def lines(completions): raise ValueError("two\\n  lines")
def by_place(completions, /, **kwargs): return [1.0] * len(completions)
def one_by_one(solution_str, ground_truth): return 1.0
def spoils(prompts, completions, cases):
    for prompt, case in zip(prompts, cases): prompt.append(0), case["a"].pop()
    return [1.0] * len(completions)
def switches(completions):
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    return [1.0] * len(completions)
def moves(completions):
    import os, signal
    os.chdir("/")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    np.seterr(all="raise")
    return [1.0] * len(completions)
class Network(torch.nn.Module):
    def forward(self, completions): return torch.ones(len(completions))
class Called(torch.nn.Module):
    def forward(self, scores): return scores
    def __call__(self, completions): return super().__call__(torch.ones(len(completions)))
def starred_options(*completions, scale=2.0): return [scale] * len(completions)
def starred(*completions): return [1.0] * len(completions)
def wants(completions, nowhere): return [1.0] * len(completions)
def talk(completions, prompts, **kwargs):
    return [float(c[0]["content"] == "yes" and p[0]["role"] == "user")
            for c, p in zip(completions, prompts)]

gate = None
async def waits(completions, **kwargs):
    global gate
    gate = gate or asyncio.Event()
    await asyncio.wait_for(gate.wait(), 5)
    return [1.0] * len(completions)
async def opens(completions, **kwargs):
    global gate
    gate = gate or asyncio.Event()
    gate.set()
    return [1.0] * len(completions)

class Model:
    def __call__(self, completions, **kwargs): return [1.0] * len(completions)
    def method(self, completions, **kwargs): return [1.0] * len(completions)
class Needy:
    def __init__(self, size): pass
model = Model()
part = partial(lambda completions, value: [value] * len(completions), value=1.0)
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "neighbour_of_rewards.py").write_text("ONE = 1.0\n")
    path = tmp_path / f"rewards_{tmp_path.name}.py"
    path.write_text(FILE)
    yield path
    sys.modules.pop("neighbour_of_rewards", None)


def rewards(judge, file, *names, problem=PROBLEM, texts=("yes", "no")):
    entries = [{"function": f"{file}:{name}"} for name in names]
    scorer = Scorer(RewardConfig(functions=entries), judge)
    scorer.check([problem])
    return scorer(list(texts), [problem] * len(texts), [[1, 2], [3]]).rewards


@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "array",
        "tensor",
        "flags",
        "Model",
        "model",
        "model.method",
        "part",
        "opens",
        "Network",
        "Called",
    ],
)
def test_every_kind_of_function(judge, file, name):
    assert rewards(judge, file, name) == [1.0, 1.0]


def test_token_ids_conversations_and_functions_at_the_same_time(judge, file):
    assert rewards(judge, file, "ids") == [3.0, 3.0]
    assert rewards(judge, file, "talk", problem=TALK) == [1.0, 0.0]
    assert rewards(judge, file, "waits", "opens") == [2.0, 2.0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("words", "returned a dict"),
        ("single", "returned a float"),
        ("text", "'1' is no reward .of completion 0."),
        ("never", "no function rewards a completion, number 0: 'yes', of the prompt '.'"),
        ("leaves", "leaves: SystemExit: 0"),
        ("breaks_off", "breaks_off: SystemExit: 0"),
        ("endless", "more than 2 rewards for 2 completions"),
        ("huge", "huge: 1000.* is no reward .of completion 0."),
        ("table", "returned an? ndarray of 2 dimensions"),
        ("unordered", "returned a frozenset"),
        ("lines", "ValueError: two lines$"),
    ],
)
def test_what_is_no_reward(judge, file, name, message):
    with pytest.raises(RuntimeError, match=message):
        rewards(judge, file, name)


def test_a_missing_argument_is_told_before_the_run(judge, file):
    with pytest.raises(ConfigError, match=r"wants needs nowhere, .*columns: level"):
        rewards(judge, file, "wants")
    with pytest.raises(ConfigError, match=r"reward.functions.options.size: .*Needy needs it"):
        rewards(judge, file, "Needy")


def test_arguments_of_other_trainers_are_told_their_names_here(judge, file):
    with pytest.raises(ConfigError, match="references for ground_truth, completions for solution"):
        rewards(judge, file, "one_by_one")
    with pytest.raises(ConfigError, match="by_place takes completions by place alone"):
        rewards(judge, file, "by_place")
    with pytest.raises(ConfigError, match=r"starred takes \*completions by place alone"):
        rewards(judge, file, "starred")
    with pytest.raises(ConfigError, match=r"starred_options takes \*completions by place alone"):
        rewards(judge, file, "starred_options")
    with pytest.raises(ConfigError, match=r"needs self, .*name the method of an object"):
        rewards(judge, file, "Model.method")


def test_a_function_that_changes_its_lists_changes_no_problem(judge, file):
    problem = replace(TALK, columns={"cases": {"a": [1]}})
    assert rewards(judge, file, "spoils", problem=problem) == [1.0, 1.0]
    assert problem.columns == {"cases": {"a": [1]}} and problem.messages == TALK.messages


def test_what_a_function_switches_in_torch_is_switched_back(judge, file):
    assert rewards(judge, file, "switches") == [1.0, 1.0]
    assert torch.is_grad_enabled() and torch.get_default_dtype() == torch.float32


def test_where_the_run_is_and_what_ends_it_stay_as_they_were(judge, file):
    before = os.getcwd(), signal.getsignal(signal.SIGTERM), np.geterr()
    assert rewards(judge, file, "moves") == [1.0, 1.0]
    assert (os.getcwd(), signal.getsignal(signal.SIGTERM), np.geterr()) == before


def test_a_reward_that_is_none_needs_no_traceback_of_ours(judge, file):
    with pytest.raises(PartError) as error:
        rewards(judge, file, "single")
    assert told_whole(error.value) and not told_whole(RuntimeError("ours"))


def test_an_interruption_passes(judge, file):
    with pytest.raises(KeyboardInterrupt):
        rewards(judge, file, "interrupted")


def test_a_file_runs_once_under_every_name(judge, file):
    link = file.with_name(f"link_{file.name}")
    link.symlink_to(file)
    rewards(judge, file, "plain", "array")
    rewards(judge, link, "plain")
    assert file.with_name(file.name + ".runs").read_text() == "x"
    module = sys.modules[named("reward.functions", f"{file}:plain").__module__]
    assert pickle.loads(pickle.dumps(module.Case(3))) == module.Case(3)


def test_a_file_that_leaves_and_one_with_the_name_of_a_library(tmp_path):
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(ConfigError, match="does not run: SystemExit: 0"):
        named("reward.functions", f"{tmp_path}/leaves.py:f")
    (tmp_path / "json.py").write_text("def f(completions): return []\n")
    named("reward.functions", f"{tmp_path}/json.py:f")
    import json

    assert json.loads("1") == 1
    package = tmp_path / f"pack_{tmp_path.name.replace('-', '_')}"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "part.py").write_text("X = 1\n")
    (package / "own.py").write_text("from .part import X\ndef f(completions): return X\n")
    assert named("reward.functions", f"{package}/own.py:f")([]) == 1
