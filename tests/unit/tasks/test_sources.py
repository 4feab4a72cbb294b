r"""Data sets in their published form: small ones of each schema, and the real files if at hand."""

import json
from pathlib import Path

import datasets
import pytest

from capo_ds.config import BenchmarkConfig, ConfigError, TaskConfig
from capo_ds.tasks import Problem, load_benchmark, load_problems, score
from capo_ds.tasks.sources import last_box
from tests.conftest import REPOSITORY

REAL = REPOSITORY.parent / "shared" / "data"

GSM8K = [
    {
        "question": "Natalia sold 48 clips in April, and half as many in May. How many in all?",
        "answer": "In May 48/2 = <<48/2=24>>24 clips.\nIn all 48+24 = <<48+24=72>>72.\n#### 72",
    },
    {"question": "What is $1,000 + $80?", "answer": "$<<1000+80=1080>>1,080 it is\n#### 1,080"},
    {"question": "What is 3 - 5?", "answer": "It is less.\n#### -2"},
]
MATH = [
    {
        "problem": r"Compute $\frac{1}{2}+\frac{1}{6}$.",
        "level": "Level 1",
        "type": "Prealgebra",
        "solution": r"It is $\frac{4}{6}=\boxed{\frac{2}{3}}$.",
    },
    {
        "problem": "Find all roots of $x^2=x$.",
        "level": "Level 2",
        "type": "Algebra",
        "solution": r"First \boxed{x(x-1)=0}, so the roots are \boxed{\{0, 1\}}.",
    },
]
AMC = [
    {"id": 0, "problem": "a", "answer": 27.0, "url": "u", "question": "How many miles?"},
    {"id": 1, "problem": "b", "answer": -1.0, "url": "u", "question": "What is $i^2$?"},
]
AIME = [
    {
        "id": 60,
        "problem": "Find $n$.",
        "solution": r"It is $\boxed{073}$.",
        "answer": "073",
        "url": "u",
        "year": "2024",
    }
]


def jsonl(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def benchmark(name: str, path: str, limit: int | None = None, **keys) -> list[Problem]:
    return load_benchmark(BenchmarkConfig(name=name, path=path, **keys), limit)


@pytest.mark.parametrize(
    ("name", "rows", "answers", "prompt"),
    [
        ("gsm8k", GSM8K, ["72", "1,080", "-2"], GSM8K[0]["question"]),
        ("math", MATH, [r"\frac{2}{3}", r"\{0, 1\}"], MATH[0]["problem"]),
        ("amc23", AMC, ["27", "-1"], "How many miles?"),
        ("aime24", AIME, ["073"], "Find $n$."),
    ],
)
def test_each_schema(tmp_path, judge, name, rows, answers, prompt):
    problems = benchmark(name, jsonl(tmp_path / "rows.jsonl", rows))
    assert [problem.answer for problem in problems] == answers
    assert problems[0].prompt == prompt
    assert problems[0].columns == rows[0]
    boxed = [rf"\boxed{{{answer}}}" for answer in answers]
    assert all(verdict.correct for verdict in score(boxed, problems, judge))


def test_answers_in_other_words_are_equal_to_the_references(tmp_path, judge):
    for name, rows, words in [
        ("gsm8k", GSM8K, ["72.0", "1080", "-2"]),
        ("math", MATH, ["4/6", "1, 0"]),
        ("amc23", AMC, ["27.0", r"\frac{-2}{2}"]),
        ("aime24", AIME, ["73"]),
    ]:
        problems = benchmark(name, jsonl(tmp_path / f"{name}.jsonl", rows))
        verdicts = score([rf"\boxed{{{word}}}" for word in words], problems, judge)
        assert [verdict.correct for verdict in verdicts] == [True] * len(words), name


def test_solutions_are_demonstrations_in_the_required_format(tmp_path, judge):
    problems = benchmark("gsm8k", jsonl(tmp_path / "a.jsonl", GSM8K))
    assert problems[0].solution == "In May 48/2 = 24 clips.\nIn all 48+24 = 72.\n\\boxed{72}"
    assert problems[1].solution == "$1,080 it is\n\\boxed{1,080}"
    solutions = [problem.solution for problem in problems]
    assert all(verdict.correct for verdict in score(solutions, problems, judge))
    first, second = benchmark("math", jsonl(tmp_path / "b.jsonl", MATH))
    assert first.solution == MATH[0]["solution"]
    assert second.solution is None  # two boxes: not in the required format


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        (r"\boxed{1} or \boxed{\frac{a}{b^{c}}}", r"\frac{a}{b^{c}}"),
        (r"$\fbox{5}$", "5"),
        (r"$\boxed 5$ apples", "5"),
        (r"\boxed{\text{(C)}}", r"\text{(C)}"),
    ],
)
def test_last_box(solution, answer):
    assert last_box(solution) == answer


@pytest.mark.parametrize("form", ["jsonl", "json", "csv", "parquet", "arrow"])
def test_every_kind_of_local_file(tmp_path, form):
    rows = datasets.Dataset.from_list(GSM8K)
    path = str(tmp_path / f"rows.{form}")
    if form in ("jsonl", "json"):
        rows.to_json(path)
    elif form == "csv":
        rows.to_csv(path)
    elif form == "parquet":
        rows.to_parquet(path)
    else:
        rows.save_to_disk(tmp_path / "saved")
        path = str(next((tmp_path / "saved").glob("*.arrow")))
    assert [problem.answer for problem in benchmark("gsm8k", path)] == ["72", "1,080", "-2"]


def test_local_folders(tmp_path):
    splits = {"train": GSM8K[:2], "test": GSM8K[2:]}
    rows = {name: datasets.Dataset.from_list(some) for name, some in splits.items()}
    datasets.DatasetDict(rows).save_to_disk(tmp_path / "both")
    rows["train"].save_to_disk(tmp_path / "one")
    (tmp_path / "files").mkdir()
    for name, some in splits.items():
        jsonl(tmp_path / "files" / f"{name}.jsonl", some)
    for folder in ("both", "files"):
        config = TaskConfig(name="gsm8k", path=str(tmp_path / folder))
        assert [p.answer for p in load_problems(config, "train")] == ["72", "1,080"]
        assert [p.answer for p in load_problems(config, "test")] == ["-2"]
    assert len(benchmark("gsm8k", str(tmp_path / "one"))) == 2


def test_a_users_own_columns(tmp_path, judge):
    rows = [{"q": "What is 1/3 + 1/6?", "a": "1/2", "how": r"So \boxed{1/2}", "kind": "easy"}]
    path = jsonl(tmp_path / "own.jsonl", rows)
    columns = {"prompt_column": "q", "answer_column": "a", "solution_column": "how"}
    (problem,) = benchmark("custom", path, **columns)
    assert problem == Problem(rows[0]["q"], "1/2", rows[0]["how"], rows[0], "custom")
    assert score([r"\boxed{0.5}"], [problem], judge)[0].correct


def test_limit_and_shuffle(tmp_path):
    rows = [{"question": f"What is {n}?", "answer": f"#### {n}"} for n in range(50)]
    path = jsonl(tmp_path / "rows.jsonl", rows)
    answers = [
        [p.answer for p in benchmark("gsm8k", path, 10, **keys)]
        for keys in ({}, {"shuffle": True}, {"shuffle": True, "seed": 1}, {"shuffle": True})
    ]
    assert answers[0] == [str(n) for n in range(10)]
    assert answers[1] == answers[3] != answers[0]
    assert answers[2] != answers[1]
    config = TaskConfig(name="gsm8k", path=path, test_path=path, test_problems=3)
    assert len(load_problems(config, "train")) == 50
    assert len(load_problems(config, "test")) == 3


@pytest.mark.parametrize(
    ("config", "split", "arguments"),
    [
        (TaskConfig(name="gsm8k"), "train", ("openai/gsm8k", "main", "train")),
        (TaskConfig(name="gsm8k"), "test", ("openai/gsm8k", "main", "test")),
        (TaskConfig(name="math"), "train", ("DigitalLearningGmbH/MATH-lighteval", None, "train")),
        (TaskConfig(name="amc23"), "test", ("math-ai/amc23", None, "test")),
        (TaskConfig(name="aime24"), "test", ("HuggingFaceH4/aime_2024", None, "train")),
        (
            TaskConfig(name="gsm8k", path="me/fork", subset="socratic", train_split="train[:5]"),
            "train",
            ("me/fork", "socratic", "train[:5]"),
        ),
    ],
)
def test_a_hub_name_becomes_these_arguments_of_load_dataset(monkeypatch, config, split, arguments):
    rows = {"gsm8k": GSM8K, "math": MATH, "amc23": AMC, "aime24": AIME}[config.name]
    calls = []

    def load_dataset(path, name=None, *, split):
        calls.append((path, name, split))
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(load_problems(config, split)) == len(rows)
    assert calls == [arguments]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"name": "gsm8k", "path": "{rows}", "answer_column": "x"},
            "^task.answer_column: .*set task",
        ),
        ({"name": "gsm8k", "path": "{bad}"}, "row 1: no '####' before the answer"),
        ({"name": "gsm8k", "path": "{empty}"}, "^task.answer_column: .*is empty; mend the row"),
        ({"name": "gsm8k", "path": "{blank}"}, "row 0: column 'answer' holds no answer"),
        (
            {"name": "gsm8k", "path": "{chat}"},
            "^task.prompt_column: .*row 0: column 'question': a message of role 'user' has no text "
            "as content; mend the row",
        ),
        ({"name": "gsm8k", "path": "{spaces}"}, "row 0: column 'question' holds blanks alone"),
        (
            {"name": "gsm8k", "path": "{rows}", "train_split": "dev[:9]"},
            r"^task.train_split: data set .*: it has no split 'dev', but train",
        ),
        (
            {"name": "gsm8k", "path": "{rows}", "train_split": "train[:"},
            r"^task.train_split: .*write train, train\[:100\]",
        ),
        ({"name": "gsm8k", "path": "./nowhere"}, r"^task.path: .*no file or folder './nowhere'"),
        ({"name": "gsm8k", "path": "{none}"}, "^task.path: .*: it holds no rows; give one with"),
        ({"name": "gsm8k", "path": "{rows}", "subset": "x"}, "^task.subset: .*; remove it"),
        (
            {"name": "gsm8k", "path": "{image}"},
            "^task.path: .*row 0: column 'image'.*take problems",
        ),
        ({"name": "gsm8k", "path": "nowhere.jsonl"}, "no file or folder 'nowhere.jsonl'"),
        ({"name": "gsm8k", "path": "{folder}", "train_split": "dev"}, "'{folder}' cannot be"),
        ({"name": "amc23"}, "has no train problems of its own"),
    ],
)
def test_data_that_cannot_be_used_is_told(tmp_path, config, message):
    places = {
        "rows": jsonl(tmp_path / "rows.jsonl", GSM8K),
        "bad": jsonl(tmp_path / "bad.jsonl", [GSM8K[0], {"question": "?", "answer": "72"}]),
        "empty": jsonl(tmp_path / "empty.jsonl", [{"question": "?", "answer": ""}]),
        "blank": jsonl(tmp_path / "blank.jsonl", [{"question": "?", "answer": "#### "}]),
        "spaces": jsonl(tmp_path / "spaces.jsonl", [{"question": " \n", "answer": "#### 7"}]),
        "chat": jsonl(tmp_path / "chat.jsonl", [{"question": [{"role": "user"}], "answer": "a"}]),
        "none": jsonl(tmp_path / "none.jsonl", []),
        "image": jsonl(tmp_path / "image.jsonl", [GSM8K[0] | {"image": "cat.png"}]),
        "folder": str(tmp_path),
    }
    config = {key: value.format(**places) for key, value in config.items()}
    with pytest.raises(ConfigError, match=message.replace("{folder}", str(tmp_path))):
        load_problems(TaskConfig(**config), "train")


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"path": "./nowhere"}, "path"),
        ({"path": "{rows}", "test_path": "./nowhere"}, "test_path"),
        ({"path": "{folder}", "test_split": "dev"}, "test_split"),
    ],
)
def test_the_key_of_a_mixtures_entry_is_told(tmp_path, keys, told):
    jsonl(tmp_path / "test.jsonl", GSM8K)
    places = {"rows": jsonl(tmp_path / "rows.jsonl", GSM8K), "folder": str(tmp_path)}
    entry = {"name": "gsm8k"} | {key: value.format(**places) for key, value in keys.items()}
    config = TaskConfig.model_validate({"mixture": [{"name": "arithmetic"}, entry]})
    with pytest.raises(ConfigError, match=rf"^task.mixture.1.{told}: data set"):
        load_problems(config, "test")


@pytest.mark.parametrize("hub", [ValueError("Unknown split \"nope\". Should be one of ['test'].")])
def test_a_split_that_the_hub_does_not_have_is_told_by_its_key(monkeypatch, hub):
    def load_dataset(*_, **__):
        raise hub

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ConfigError) as caught:
        load_problems(TaskConfig(name="gsm8k", train_split="nope"), "train")
    assert str(caught.value).startswith("task.train_split: ") and "hub name" not in str(
        caught.value
    )
    config = BenchmarkConfig(name="gsm8k", split="nope")
    with pytest.raises(ConfigError, match=r"^evaluation.benchmarks.3.split: .*one of \['test'\]"):
        load_benchmark(config, None, "evaluation.benchmarks.3")


def test_messages_are_no_reference(tmp_path):
    talk = [{"role": "user", "content": "1+1?"}]
    for value in (talk, json.dumps(talk), {"content": "2"}):
        path = jsonl(tmp_path / "rows.jsonl", [{"prompt": talk, "a": value}])
        columns = ["a", "prompt"] if value is talk else ["a"]
        for column in columns:
            with pytest.raises(ConfigError, match=r"\.answer_column: .*; name the column"):
                benchmark("custom", path, prompt_column="prompt", answer_column=column)


def test_one_file_does_not_serve_for_training_and_testing(tmp_path):
    config = TaskConfig(name="gsm8k", path=jsonl(tmp_path / "rows.jsonl", GSM8K))
    with pytest.raises(ConfigError, match=r"task.test_path: .* is one split"):
        load_problems(config, "test")


@pytest.mark.skipif(not REAL.is_dir(), reason="the published files are not here")
@pytest.mark.parametrize(
    ("name", "file", "count"),
    [
        ("gsm8k", "gsm8k_train", 7473),
        ("gsm8k", "gsm8k_test", 1319),
        ("amc23", "amc23", 40),
        ("aime24", "aime24", 30),
    ],
)
def test_every_published_answer_is_read_and_equal_to_itself(judge, name, file, count):
    problems = benchmark(name, str(REAL / f"{file}.jsonl"))
    assert len(problems) == count
    value = [float(problem.answer.replace(",", "")) for problem in problems]
    for form in ("{}", "{}.0", r"\${}"):  # as it is, and as it may be written
        texts = [rf"\boxed{{{form.format(problem.answer)}}}" for problem in problems]
        assert all(verdict.correct for verdict in score(texts, problems, judge)), form
    off = [rf"\boxed{{{number + 1}}}" for number in value]
    assert not any(verdict.correct for verdict in score(off, problems, judge))
    if name == "gsm8k":
        solutions = [problem.solution for problem in problems]
        assert all(verdict.correct for verdict in score(solutions, problems, judge))


def test_trls_and_verls_data_sets(tmp_path):
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 1+1?"}]
    rows = [
        {
            "data_source": "mine",
            "prompt": talk,
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": "2"},
            "extra_info": {"answers": ["2", "two"]},
        }
    ]
    path = str(tmp_path / "rows.parquet")
    datasets.Dataset.from_list(rows).to_parquet(path)
    for column in ("reward_model.ground_truth", "extra_info.answers.0"):
        keys = {"prompt_column": "prompt", "answer_column": column}
        (problem,) = benchmark("custom", path, **keys)
        assert (problem.messages, problem.prompt, problem.answer) == (talk, "What is 1+1?", "2")
    keys["answer_column"] = "reward_model.truth"
    with pytest.raises(ConfigError, match=r"no column 'reward_model\.truth'"):
        benchmark("custom", path, **keys)


def test_conversations_in_other_clothes(tmp_path):
    talk = [{"role": "user", "content": "What is 1+1?"}]
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "1+1?"}]
    for told in (json.dumps(talk), str(talk), [{"role": "user", "content": parts}]):
        path = jsonl(tmp_path / "rows.jsonl", [{"q": told, "a": "2"}])
        (problem,) = benchmark("custom", path, prompt_column="q", answer_column="a")
        assert problem.messages == talk and problem.prompt == "What is 1+1?"
    calls = [*talk, {"role": "assistant", "content": None, "tool_calls": [{"type": "function"}]}]
    path = jsonl(tmp_path / "rows.jsonl", [{"q": calls, "a": "2"}])
    (problem,) = benchmark("custom", path, prompt_column="q", answer_column="a")
    assert problem.messages[1]["content"] == "" and problem.messages[1]["tool_calls"]
    asks = [{"role": "system", "content": "Say 2."}, {"role": "user", "content": " "}]
    path = jsonl(tmp_path / "rows.jsonl", [{"q": asks, "a": "2"}])
    assert benchmark("custom", path, prompt_column="q", answer_column="a")[0].messages == asks
    for told in (
        "[{[1, 2], [3]}]",
        '[{"role": "user"}] What is it?',
        '[{"x": 1}]',
        "[{not JSON",
        "[1, 2]",
    ):  # texts like any other
        path = jsonl(tmp_path / "rows.jsonl", [{"q": told, "a": "2"}])
        (problem,) = benchmark("custom", path, prompt_column="q", answer_column="a")
        assert problem.messages is None and problem.prompt == told
    shared = [{"from": "human", "value": "1+1?"}]
    for told in (shared, json.dumps(shared)):
        path = jsonl(tmp_path / "rows.jsonl", [{"q": told, "a": "2"}])
        with pytest.raises(ConfigError, match="rename from and value"):
            benchmark("custom", path, prompt_column="q", answer_column="a")
    path = jsonl(tmp_path / "rows.jsonl", [{"q": "[{'role': 'user'} {'role': 'x'}]", "a": "2"}])
    with pytest.raises(ConfigError, match="row 0: column 'q' holds what looks like messages"):
        benchmark("custom", path, prompt_column="q", answer_column="a")
    keys = {"prompt_column": "a", "answer_column": "a", "solution_column": "steps"}
    with pytest.raises(
        ConfigError, match=r"no column 'steps'; set .*solution_column to one of 'q'"
    ):
        benchmark("custom", path, **keys)
