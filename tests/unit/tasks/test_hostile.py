"""Whatever a policy writes: a verdict, no exception, no process left, memory flat."""

import gc

import psutil
import pytest

from capo_ds.tasks import Problem, score
from capo_ds.tasks.judge import Judge
from tests.unit.tasks.hostile import completions

BATCH = 250
GROWTH = 150e6  # bytes; the longest completions take megabytes while they are read


def grade(count: int, seed: int, time_limit: float) -> None:
    judge = Judge(time_limit=time_limit, workers=2)
    me, pairs = psutil.Process(), list(completions(seed, count))
    before = {child.pid for child in me.children(recursive=True)}
    memory = []
    for start in range(0, count, BATCH):
        part = pairs[start : start + BATCH]
        problems = [Problem(prompt="?", answer=reference) for _, reference in part]
        verdicts = score([completion for completion, _ in part], problems, judge)
        assert all(verdict.reward in (1, -0.5, -1) and verdict.reason for verdict in verdicts)
        gc.collect()
        own = [child for child in me.children(recursive=True) if child.pid not in before]
        assert len(own) <= 4  # of each worker the process and its child
        assert all(child.status() != psutil.STATUS_ZOMBIE for child in own)
        memory.append(me.memory_info().rss + sum(child.memory_info().rss for child in own))
    assert memory[-1] - memory[0] < GROWTH, memory
    del judge
    gc.collect()
    _, alive = psutil.wait_procs(own, timeout=30)
    assert not alive


def test_some_hundreds():
    grade(2 * BATCH, seed=0, time_limit=0.2)


@pytest.mark.slow
def test_ten_thousand():
    grade(10_000, seed=1, time_limit=1.0)
