"""Training on two ranks with vLLM, inside them and as a server."""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from capo_ds.config import BUILTIN_MODELS
from capo_ds.rollout.server_key import VARIABLE
from tests.conftest import REPOSITORY, TIMEOUT, free_port, launch
from tests.end_to_end.test_train import SIGNALLED, TRAIN, arguments, metrics
from tests.ranks import preload

pytestmark = pytest.mark.vllm
ENGINES_IMPORTS = (
    "vllm.entrypoints.llm",
    "vllm.v1.worker.cpu_worker",
    "vllm.lora.worker_manager",
    "vllm.model_executor.models.qwen2",
)
VLLM = {
    "rollout.sampler": "vllm",
    "rollout.vllm_cache_gib": 0.25,
    "rollout.importance_correction": "token",
    "train.steps": 3,
    "train.save_every": 2,
}


@pytest.fixture(scope="module", autouse=True)
def engines_imports() -> None:
    """Ranks have from the start what an engine imports: many CPU seconds. It does those of later
    files no harm, which need not wait for a process without."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_LOGGING_LEVEL", "ERROR")  # as a run sets it before it imports vLLM
        preload(*ENGINES_IMPORTS)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("vllm") / "run"
    launch(2, TRAIN, *arguments(folder, **VLLM))
    return folder


def test_the_sampler_follows_the_trainer(undisturbed):
    lines = metrics(undisturbed)
    assert [line["step"] for line in lines if "eval/accuracy" in line] == [0, 2, 3]
    for line in lines[1:]:
        assert 0 < line["rollout/probe_difference"] < line["rollout/probe_difference_max"] < 1e-4
        # The second update of a step is off-policy by then, but the behaviour policy is not.
        assert 0 < line["rollout/log_prob_difference_max"] < 1e-4
        assert line["rollout/importance_ratio"] == pytest.approx(1, abs=1e-4)
        assert line["rollout/effective_sample_size"] == pytest.approx(1, abs=1e-4)
        assert line["loss/grad_norm"] > 0


@pytest.mark.slow
def test_the_launcher_adds_nothing(undisturbed, tmp_path):
    folder = tmp_path / "run"
    launch(2, TRAIN, *arguments(folder, **VLLM), launcher="deepspeed")
    for one, other in zip(metrics(folder), metrics(undisturbed), strict=True):
        for name in {"reward/mean", "rollout/length", "eval/accuracy"} & one.keys():
            assert one[name] == other[name], name


@pytest.mark.slow
def test_resumed_equals_undisturbed(undisturbed, tmp_path):
    """The fresh engine has the base model's weights until it gets those of the checkpoint."""
    folder = tmp_path / "run"
    launch(2, TRAIN, *arguments(folder, **VLLM | {"train.steps": 2}))
    launch(2, TRAIN, *arguments(folder, **VLLM))
    one, other = metrics(undisturbed)[-1], metrics(folder)[-1]
    for name in ("reward/mean", "rollout/length", "eval/accuracy"):
        assert one[name] == other[name], name
    for name in ("rollout/entropy", "loss/grad_norm", "conflict/all_before", "capo/gap"):
        assert one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-6), name


@pytest.mark.slow  # test_sampler.py has the engine and its probe without a run
def test_a_sampler_with_old_weights_ends_the_run(tmp_path):
    script = Path(__file__).with_name("stale_train.py")
    result = launch(2, script, *arguments(tmp_path / "run", **VLLM), status=1)
    told = result.stdout + result.stderr
    assert told.count("error: probe failed on rank 0: SamplerMismatch") == 1
    assert "it answers as before the sync: it still has the old weights" in told
    assert [line["step"] for line in metrics(tmp_path / "run")] == [0, 1]  # none after it


def test_stop_strings_end_responses_as_they_do_with_hf(tmp_path):
    """Greedy responses of the evaluation before training: texts and their lengths in tokens."""
    changes = VLLM | {"prompt.stop": '["="]', "train.steps": 1, "train.eval_every": 1}
    answers = {}
    for sampler in ("hf", "vllm"):
        folder = tmp_path / sampler
        own = changes | {"rollout.sampler": sampler}
        launch(1, TRAIN, *arguments(folder, **own))
        lines = (folder / "evaluations" / "step000000.jsonl").read_text().splitlines()
        rows = map(json.loads, lines)
        answers[sampler] = [(row["completion"], row["tokens"], row["truncated"]) for row in rows]
    assert answers["hf"] == answers["vllm"]
    assert any(tokens < 10 and not cut for _, tokens, cut in answers["hf"])
    assert not any("=" in completion for completion, _, _ in answers["hf"])


@pytest.fixture
def shared_before() -> Iterator[set[Path]]:
    """What lies in the shared memory: that of an engine of two ranks too, as a run that was killed,
    or one beside this, has it under vLLM's own name."""
    memory = Path("/dev/shm")
    there = [memory / f"-tp:0-[0-1]-cpushm_{rank}" for rank in range(2)]
    made = [file for file in there if not file.exists()]
    for file in made:
        file.touch()
    yield {*memory.iterdir()}
    for file in made:
        file.unlink()


def test_one_engine_over_two_ranks_samples_the_same(undisturbed, shared_before, tmp_path):
    """At ZeRO 3, with unequal shares of the prompts, and beside another run's engine."""
    changes = {"rollout.tensor_parallel": 2, "rollout.prompts_per_step": 5, "train.steps": 1}
    changes |= {"deepspeed": "ds_configs/zero3.json"}
    launch(2, TRAIN, *arguments(tmp_path / "run", **VLLM | changes))
    own = {file for file in Path("/dev/shm").iterdir() if file.name.startswith("capo-")}
    assert own <= shared_before
    line, expected = metrics(tmp_path / "run"), metrics(undisturbed)
    assert line[0]["eval/accuracy"] == expected[0]["eval/accuracy"]
    assert line[1]["rollout/probe_difference_max"] < 1e-4
    assert line[1]["rollout/log_prob_difference_max"] < 1e-4


@pytest.fixture(scope="module")
def special(tmp_path_factory) -> Path:
    """The embedded model, whose tokenizer takes "=" for a special token."""
    folder = tmp_path_factory.mktemp("special") / "model"
    shutil.copytree(BUILTIN_MODELS["builtin:tiny"], folder)
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    token = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    token |= {"id": tokenizer["model"]["vocab"]["="], "content": "=", "special": True}
    tokenizer["added_tokens"].append(token)
    file.write_text(json.dumps(tokenizer))
    return folder


def sampled(folder: Path, model: Path, **changes) -> dict:
    """What truncated.py finds."""
    script = Path(__file__).with_name("truncated.py")
    settings = VLLM | {"model.path": model} | changes
    result = launch(1, script, *arguments(folder, **settings))
    return json.loads(next(line for line in result.stdout.splitlines() if line[:1] == "{"))


def check_truncation(found: dict) -> None:
    """Log-probabilities are those of the truncated distribution, and no token that it leaves out is
    drawn."""
    assert found["stop"]["equal"] and len(found["truncation"]) == 5
    for name, (difference, outside) in found["truncation"].items():
        assert difference < 1e-4 and outside == 0, name


def check_special(found: dict, without: dict) -> None:
    """Responses end at the token as with the Hugging Face sampler, and before where they ended."""
    assert found["stop"]["equal"]
    assert sum(found["stop"]["lengths"]) < sum(without["stop"]["lengths"])


def test_truncated_sampling_and_special_stops_inside(special, tmp_path):
    whole = sampled(tmp_path / "whole", special)
    check_truncation(whole)
    check_special(sampled(tmp_path / "stop", special, **{"prompt.stop": '["="]'}), whole)


@contextmanager
def server_process(folder: Path, model: Path) -> Iterator[tuple[str, subprocess.Popen]]:
    """A server's address, once it answers, and its process."""
    url, log = f"http://127.0.0.1:{free_port()}", folder / "log"
    own = {"rollout.server_url": url, "model.path": model}
    own |= {"rollout.sampler": "server", "rollout.ahead": 1, "rollout.dynamic_sampling": 0}
    words = [REPOSITORY / "launchers" / "vllm_server.py", *arguments(Path("unused"), **VLLM | own)]
    with open(log, "w") as file:
        process = subprocess.Popen(
            [sys.executable, *words], cwd=REPOSITORY, stdout=file, stderr=file
        )
    engines: list[psutil.Process] = []
    try:
        wait_for_server(process, url, log)
        engines = psutil.Process(process.pid).children(recursive=True)
        yield url, process
    finally:
        process.terminate()
        process.wait(timeout=TIMEOUT)
        for engine in engines:  # they outlive a server that is killed
            with suppress(psutil.NoSuchProcess):
                engine.kill()


@pytest.fixture(scope="module")
def server_url(tmp_path_factory, special) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, "of these tests")  # and no file in the home of who runs them
        with server_process(tmp_path_factory.mktemp("server"), special) as (url, _):
            yield url


def wait_for_server(process: subprocess.Popen, url: str, log: Path) -> None:
    deadline = time.monotonic() + TIMEOUT
    while True:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5)  # which needs no key
            return
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.2)


@pytest.mark.slow  # a server samples by the same engine, behind the door of test_server_door.py
def test_truncated_sampling_and_special_stops_on_a_server(special, server_url, tmp_path):
    server = {"rollout.sampler": "server", "rollout.server_url": server_url}
    whole = sampled(tmp_path / "whole", special, **server)
    check_truncation(whole)
    stop = {"prompt.stop": '["="]'}
    check_special(sampled(tmp_path / "stop", special, **server, **stop), whole)


@pytest.mark.slow  # test_server_door.py has the door alone
@pytest.mark.parametrize(
    "path",
    ["v1/models", "v1/load_lora_adapter", "v1/completions", "invocations", "capo/adapters/a"],
)
@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}])
def test_a_server_refuses_whoever_lacks_the_key(server_url, path, headers):
    data = None if path == "v1/models" else b"{}"
    request = urllib.request.Request(f"{server_url}/{path}", data, headers)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=60)
    assert refused.value.code == 401


@pytest.mark.slow  # test_servers.py has several ranks and adapters, on made-up servers
def test_a_server_samples_the_same(undisturbed, server_url, tmp_path):
    changes = {"rollout.sampler": "server", "rollout.server_url": server_url}
    launch(2, TRAIN, *arguments(tmp_path / "run", **VLLM | changes))
    lines, expected = metrics(tmp_path / "run"), metrics(undisturbed)
    for line, other in zip(lines[1:], expected[1:], strict=True):
        assert line["rollout/probe_difference_max"] < 1e-4
        for name in ("reward/mean", "rollout/length", "rollout/entropy", "loss/grad_norm"):
            assert line[name] == pytest.approx(other[name], rel=1e-3), name
    assert not (tmp_path / "run" / "server_adapters").exists()  # they travel over HTTP
    key = {"Authorization": f"Bearer {os.environ[VARIABLE]}"}
    asked = urllib.request.Request(f"{server_url}/v1/models", headers=key)
    with urllib.request.urlopen(asked) as answer:
        served = json.loads(answer.read())["data"]
    runs = [model["id"].rpartition("-")[0] for model in served if model["parent"]]
    assert runs and len(set(runs)) == len(runs)  # a run's older ones are gone


@pytest.mark.slow
def test_two_servers_of_which_one_dies(undisturbed, special, server_url, tmp_path):
    """They share the prompts; the one that is left samples all of them, and as the other would."""
    with server_process(tmp_path, special) as (second, process):
        servers = {"rollout.sampler": "server", "rollout.server_url": f"[{server_url}, {second}]"}
        own = arguments(tmp_path / "run", **VLLM | servers)
        result = launch(2, SIGNALLED, str(process.pid), "2", *own)
        requests = (tmp_path / "log").read_text().count("/v1/completions")
    assert f"{second} is lost in" in " ".join(result.stderr.split())
    assert requests
    for line, other in zip(metrics(tmp_path / "run")[1:], metrics(undisturbed)[1:], strict=True):
        assert line["rollout/probe_difference_max"] < 1e-4
        for name in ("reward/mean", "rollout/length", "rollout/entropy", "loss/grad_norm"):
            assert line[name] == pytest.approx(other[name], rel=1e-3), name


@pytest.mark.slow  # test_overlap.py is ahead on a process
def test_a_server_ahead_of_learning(server_url, tmp_path):
    """In two runs, of which the second takes up what was under way at the end of the first."""
    changes = {"rollout.sampler": "server", "rollout.server_url": server_url, "rollout.ahead": 1}
    changes |= {"rollout.dynamic_sampling": 0, "optimizer.learning_rate": 1e-3}
    for steps in (2, 4):
        launch(2, TRAIN, *arguments(tmp_path / "run", **VLLM | changes | {"train.steps": steps}))
    lines = metrics(tmp_path / "run")[1:]
    assert [line["rollout/staleness"] for line in lines] == [0, 1, 1, 1]
    assert all(line["rollout/probe_difference_max"] < 1e-4 for line in lines)
    assert lines[0]["rollout/log_prob_difference"] < 1e-4
    assert all(line["rollout/log_prob_difference"] > 1e-4 for line in lines[1:])
