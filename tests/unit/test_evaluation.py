import json

import pytest

from capo_ds.config import ConfigError, parse_config
from capo_ds.evaluation import (
    Answered,
    Benchmark,
    Evaluation,
    Evaluator,
    as_metrics,
    summarise,
    table,
    write_completions,
)
from capo_ds.evaluation_run import adapter_of, load_model
from capo_ds.models import load_tokenizer
from capo_ds.tasks import Judge, Problem, Verdict
from capo_ds.tasks.outcome import Comparison

RIGHT = Verdict(1.0, True, True, Comparison.EQUAL)
WRONG = Verdict(-0.5, True, False, Comparison.DIFFERENT)
LATE = Verdict(-0.5, True, False, Comparison.TIMED_OUT)
NONE = Verdict(-1.0, False, False)


def evaluation(*verdicts: list[Verdict], title: str = "gsm8k") -> Evaluation:
    problems = [Problem(f"{number}?", "1") for number in range(len(verdicts))]
    answered = [
        Answered(["text"] * len(own), own, [10] * len(own), [False] * len(own)) for own in verdicts
    ]
    return Evaluation(Benchmark(title, problems, left_out=2), answered)


def test_pass_at_1():
    greedy = evaluation([RIGHT], [WRONG], [NONE], [RIGHT])
    assert greedy.accuracy == greedy.solved == 0.5
    assert greedy.formatted == 0.75
    assert greedy.standard_error == pytest.approx((1 / 3) ** 0.5 / 2)
    assert as_metrics([greedy]) == {"eval/accuracy": 0.5, "eval/formatted": 0.75}


def test_avg_and_pass_at_k():
    sampled = evaluation([RIGHT, WRONG], [RIGHT, RIGHT], [NONE, LATE])
    assert sampled.accuracy == pytest.approx(0.5)
    assert sampled.solved == pytest.approx(2 / 3)
    line = summarise(sampled)
    assert (line["timed_out"], line["unparsed"], line["left_out"]) == (1, 0, 2)
    assert line["samples"] == 2 and line["length"] == 10
    assert as_metrics([sampled])["eval/pass_at_k"] == pytest.approx(2 / 3)


def test_several_benchmarks():
    both = [evaluation([RIGHT]), evaluation([WRONG], title="amc23")]
    metrics = as_metrics(both)
    assert metrics["eval/accuracy"] == metrics["eval/gsm8k/accuracy"] == 1
    assert metrics["eval/amc23/accuracy"] == 0
    head, first, second = table(both).splitlines()
    assert head.split()[:3] == ["benchmark", "problems", "pass@1"]
    assert first.split()[:3] == ["gsm8k", "1", "100.00%"]
    assert second.split()[:3] == ["amc23", "1", "0.00%"]
    assert "avg@2" in table([evaluation([RIGHT, WRONG])])


def test_every_completion_is_written_with_its_verdict(tmp_path):
    path = tmp_path / "deep" / "completions.jsonl"
    write_completions([evaluation([RIGHT, LATE], [WRONG, NONE])], path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["problem"] for line in lines] == [0, 0, 1, 1]
    assert [line["correct"] for line in lines] == [True, False, False, False]
    assert [line["comparison"] for line in lines] == ["equal", "timed out", "different", None]
    assert {"benchmark", "prompt", "answer", "completion", "tokens", "truncated"} <= set(lines[0])


def test_without_benchmarks_the_tasks_test_problems_are_taken():
    config = parse_config({"task": {"test_problems": 12}, "evaluation": {"limit": 5}})
    evaluator = Evaluator(config, load_tokenizer(config.model.path), Judge(5.0, 1))
    (benchmark,) = evaluator.benchmarks
    assert benchmark.title == "arithmetic" and len(benchmark.problems) == 5
    assert benchmark.problems[0].prompt.endswith("\\boxed{}.\n")


def test_too_long_prompts_are_counted():
    config = parse_config(
        {
            "rollout": {"max_prompt_tokens": 44},
            "evaluation": {"benchmarks": [{"name": "arithmetic", "levels": [1, 4]}], "limit": 40},
        }
    )
    evaluator = Evaluator(config, load_tokenizer(config.model.path), Judge(5.0, 1))
    (benchmark,) = evaluator.benchmarks
    assert 0 < benchmark.left_out < 40
    assert len(benchmark.problems) == 40 - benchmark.left_out


def test_an_adapter_that_is_none_is_told(tmp_path):
    config = parse_config({"evaluation": {"adapter": str(tmp_path)}})
    with pytest.raises(ConfigError, match=r"evaluation.adapter: no PEFT adapter at .*_config.json"):
        load_model(config)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')  # without weights
    with pytest.raises(ConfigError, match=r"evaluation.adapter: .* is no adapter of builtin:tiny"):
        load_model(config)


def test_without_an_adapter_of_its_own_it_is_that_which_a_run_would_begin_with(tmp_path):
    settings = {"model": {"adapter": "first"}, "evaluation": {"adapter": "trained"}}
    assert adapter_of(parse_config(settings)) == ("evaluation.adapter", "trained")
    del settings["evaluation"]
    assert adapter_of(parse_config(settings)) == ("model.adapter", "first")
    with pytest.raises(ConfigError, match=r"^model.adapter: no PEFT adapter at "):
        load_model(parse_config({"model": {"adapter": str(tmp_path)}}))
    assert adapter_of(parse_config({}))[1] is None
