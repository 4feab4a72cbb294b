"""What makes machines of a run differ, and which links are slow."""

import os

from capo_ds import machines
from capo_ds.config import parse_config
from capo_ds.contents import PIECE
from capo_ds.distributed import launch
from capo_ds.machines import Link


def test_a_digest_is_of_names_and_contents(tmp_path):
    file = tmp_path / "a.bin"
    file.write_bytes(b"x" * (3 * PIECE))
    whole, ends = machines.digest([file]), machines.digest([file], whole=False)
    with file.open("r+b") as content:  # in the middle
        content.seek(PIECE + PIECE // 2)
        content.write(b"y")
    assert machines.digest([file]) != whole and machines.digest([file], whole=False) == ends
    with file.open("r+b") as content:
        content.seek(-1, os.SEEK_END)
        content.write(b"y")
    assert machines.digest([file], whole=False) != ends
    same = machines.digest([file])
    file.rename(tmp_path / "b.bin")
    assert machines.digest([tmp_path / "b.bin"]) != same


def test_what_a_run_reads_is_part_of_its_identity(tmp_path):
    (tmp_path / "rows.jsonl").write_text("{}")
    (tmp_path / "mine.py").write_text("def f(problem): ...")
    task = {"name": "custom", "path": f"{tmp_path}/rows.jsonl"}
    task |= {"prompt_column": "q", "answer_column": "a"}
    settings = {"aggregator": f"{tmp_path}/mine.py:f", "task": task, "train": {"eval_every": 0}}
    first = machines.identity(parse_config(settings))
    assert {"code", "torch", "recipe", f"{tmp_path}/rows.jsonl", f"{tmp_path}/mine.py"} <= set(
        first
    )
    assert any(name.endswith("zero2.json") for name in first)
    (tmp_path / "rows.jsonl").write_text("{ }")
    changed = machines.identity(parse_config(settings))
    (told,) = machines.differences([first, changed, changed], ["a", "b", "b"])
    assert told.startswith(f"{tmp_path}/rows.jsonl is ") and " on b, and " in told
    assert machines.differences([first, first], ["a", "b"]) == []
    assert machines.differences([first, {}], ["a", "b"])[0].endswith(
        f"and {first[min(first)]} on a"
    )


def test_a_link_is_slow_among_its_like():
    hosts = ["a", "a", "b", "b", "c"]
    rates = {(0, 1): 100.0, (2, 3): 90.0}  # within machines
    links = [
        Link(i, j, 0.3 if (i, j) == (1, 4) else rates.get((i, j), 8.0))
        for j in range(5)
        for i in range(j)
    ]
    assert [link[:2] for link in machines.slow_links(links, hosts)] == [(1, 4)]
    assert machines.slow_links([], hosts) == []


def test_cores_are_shared_out_where_nobody_has(monkeypatch):
    for name in (*launch.LOCAL_SIZES, launch.THREADS, launch.SLURM_TASKS, "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))

    def threads(**variables: str) -> str:
        monkeypatch.delenv(launch.THREADS, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        launch.share_cores()
        return os.environ[launch.THREADS]

    assert threads(WORLD_SIZE="1") == "64"
    assert threads(LOCAL_SIZE="8") == "8"  # deepspeed
    assert threads(LOCAL_SIZE="100") == "1"
    assert threads(SLURM_STEP_NUM_TASKS="8", SLURM_CPUS_PER_TASK="6") == "6"
    assert threads(OMP_NUM_THREADS="3") == "3"
    monkeypatch.delenv(launch.THREADS)
