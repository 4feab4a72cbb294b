"""Answers that need SymPy, and children that have to be killed."""

import os
import subprocess
import sys
import threading
import time

import psutil
import pytest

from capo_ds.tasks.judge import Judge, Worker
from capo_ds.tasks.outcome import Comparison

EQUAL, DIFFERENT, UNPARSED = Comparison.EQUAL, Comparison.DIFFERENT, Comparison.UNPARSED
ENDLESS = ("(-a-b-c-d-f-g)^{60}", "(a+b+c+d+f+g)^{60}")


@pytest.mark.parametrize(
    ("given", "reference", "comparison"),
    [
        ("(x+1)^2", "x^2+2x+1", EQUAL),
        (r"\sqrt{18}", r"3\sqrt{2}", EQUAL),
        (r"\frac{\sqrt2}{2}", r"\frac{1}{\sqrt{2}}", EQUAL),
        ("(1, 2)", "(1,2)", EQUAL),
        ("(2,1)", "(1,2)", DIFFERENT),
        ("2, 1", "1, 2", EQUAL),  # the order of a set
        ("1", "1, 2", DIFFERENT),
        ("[1,2]", "(1,2)", DIFFERENT),
        (r"\text{Evelyn}", "Evelyn", EQUAL),
        (r"\textbf{(C)}", r"\text{(C)}", EQUAL),
        (r"\text{(B)}", r"\text{(C)}", DIFFERENT),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}", EQUAL),
        (r"x \in [1,2]", "[1,2]", EQUAL),
        ("x", r"\frac{", UNPARSED),  # an unreadable reference equals nothing but itself
        (r"\frac{", "x", UNPARSED),
        ("", "x", UNPARSED),
    ],
)
def test_symbolic_answers(judge, given, reference, comparison):
    assert judge.compare([(given, reference)]) == [comparison]


def test_order_and_repetition(judge):
    pairs = [("2x", "x+x"), ("1", "1"), ("2x", "x"), ("2x", "x+x"), ("1", "2")]
    assert judge.compare(pairs) == [EQUAL, EQUAL, DIFFERENT, EQUAL, DIFFERENT]
    assert judge.compare([]) == []


def test_an_endless_comparison_is_killed_and_the_next_one_answered():
    judge = Judge(time_limit=2.0, workers=1)
    start = time.monotonic()
    comparisons = judge.compare([("2x", "x+x"), ENDLESS, ("3x", "x+2x")])
    assert comparisons == [EQUAL, Comparison.TIMED_OUT, EQUAL]
    assert time.monotonic() - start < 120  # ENDLESS would take hours


def test_a_killed_child_uses_no_more_time_and_another_is_forked():
    worker = Worker(time_limit=5.0)
    worker.ask("2x", "x+x")
    (child,) = psutil.Process(worker._process.pid).children()
    worker.time_limit = 0.5
    assert worker.ask(*ENDLESS).comparison is Comparison.TIMED_OUT
    assert not child.is_running()
    worker.time_limit = 5.0
    assert worker.ask("3x", "x+2x").comparison is EQUAL
    parent = psutil.Process(worker._process.pid)
    (child,) = parent.children()
    # Forked: importing SymPy anew would take as long as it took its parent.
    assert sum(child.cpu_times()[:2]) < 0.5 * sum(parent.cpu_times()[:2])


def test_time_that_the_machine_takes_is_not_the_answers():
    """The child stands still for three times its limit, as on a machine that is busy."""
    worker = Worker(time_limit=5.0)
    worker.ask("2x", "x+x")  # the first takes longest
    worker.time_limit = 0.5
    (child,) = psutil.Process(worker._process.pid).children()
    child.suspend()
    timer = threading.Timer(1.5, child.resume)
    timer.start()
    start = time.monotonic()
    assert worker.ask("3x", "x+2x").comparison is EQUAL
    assert time.monotonic() - start > 1


def test_a_budget_holds_for_all_answers_together():
    judge = Judge(time_limit=60.0, workers=2)
    endless = [(f"(-a-b-c-d-f-g)^{{{n}}}", f"(a+b+c+d+f+g)^{{{n}}}") for n in range(40, 80, 2)]
    pairs = [("2x", "x+x"), *endless]
    judge.compare(pairs[:1])
    start = time.monotonic()
    with judge.within(3.0):
        outcomes = judge.explain([*pairs, ("16", "16")])
    assert time.monotonic() - start < 60  # of which one worker's start; without it, minutes
    comparisons = [outcome.comparison for outcome in outcomes]
    assert comparisons == [EQUAL] + [Comparison.UNJUDGED] * 20 + [EQUAL]
    assert "reward.step_budget" in outcomes[1].reason
    assert judge.compare([("3x", "x+2x")]) == [EQUAL]  # the next step has its own


def test_a_child_that_is_killed_is_replaced():
    worker = Worker(time_limit=5.0)
    assert worker.ask("2x", "x+x").comparison is EQUAL
    for victim in (*psutil.Process(worker._process.pid).children(), worker._process):
        victim.kill()
        time.sleep(0.3)
        assert worker.ask("3x", "x+2x").comparison is EQUAL
        assert worker.ask("2x", "x+2x").comparison is DIFFERENT


def test_the_judge_works_in_threads(judge):
    """signal.alarm would not."""
    found = []
    thread = threading.Thread(target=lambda: found.extend(judge.compare([("2y", "y+y")])))
    thread.start()
    thread.join()
    assert found == [EQUAL]


def test_children_end_with_their_parent_also_when_busy(tmp_path):
    program = (
        "from capo_ds.tasks.judge import Worker\n"
        "worker = Worker(2.0)\n"
        "worker.ask('2x', 'x+x')\n"
        "print(worker._process.pid, flush=True)\n"
        "worker.time_limit = 60\n"
        "worker.ask('(-a-b-c-d-f-g)^{60}', '(a+b+c+d+f+g)^{60}')\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    worker = psutil.Process(int(parent.stdout.readline()))
    while not worker.children():
        time.sleep(0.05)
    children = [worker, *worker.children()]
    parent.kill()
    parent.communicate()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert len(children) == 2
    assert not alive


def test_children_are_light(judge):
    program = "import sys, capo_ds.tasks.worker; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_child_that_does_not_start_is_an_error_with_its_words(monkeypatch, tmp_path):
    (tmp_path / "sympy.py").write_text("raise ImportError('no such library')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path) + os.pathsep + os.environ.get("PYTHONPATH", ""))
    with pytest.raises(RuntimeError, match=r"(?s)did not start.*no such library"):
        Judge(time_limit=1.0, workers=1).compare([("2x", "x+x")])


def test_two_thousand_numeric_answers_a_second(judge):
    pairs = [(f"{n:,}.0", str(n + n % 2)) for n in range(20_000)]
    start = time.process_time()  # whatever else the machine does
    comparisons = judge.compare(pairs)
    assert len(pairs) / (time.process_time() - start) > 2_000
    assert comparisons == [EQUAL, DIFFERENT] * 10_000
