import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from capo_ds.config import OptimizerConfig
from capo_ds.distributed.schedule import learning_rate_factor
from capo_ds.rollout.base import uniforms
from capo_ds.seeding import Stream, generator
from capo_ds.telemetry.metrics import METRICS_FILE, Largest, Measures, PhaseTimer, Recorder
from capo_ds.telemetry.summary import final_table


def test_uniforms_depend_on_seed_step_and_prompt_only():
    base = uniforms(0, 1, 2, samples=3, tokens=4)
    assert base.shape == (3, 4)
    np.testing.assert_array_equal(base, uniforms(0, 1, 2, 3, 4))
    for other in (uniforms(1, 1, 2, 3, 4), uniforms(0, 2, 2, 3, 4), uniforms(0, 1, 3, 3, 4)):
        assert not np.any(base == other)


def test_means_and_maxima_weigh_by_count_and_merge():
    first, second = Measures(), Measures()
    first.add({"a": torch.tensor([1.0, 2.0, 3.0]), "empty": torch.tensor([])})
    second.add({"a": 10, "b": torch.tensor([True, False])})
    first.add({"top": Largest(torch.tensor([]))})
    first.add({"top": Largest(torch.tensor([-3.0, -2.0]))})
    second.add({"top": Largest(torch.tensor([-5]))})
    taken = first.take()
    assert first.sums == first.maxima == {}
    assert Measures.merge([taken, second]) == pytest.approx({"a": 4.0, "b": 0.5, "top": -2.0})


def test_phase_times_add_up_and_restart():
    timer = PhaseTimer()
    for _ in range(2):
        with timer("x"):
            pass
    taken = timer.take()
    assert list(taken) == ["time/x"] and taken["time/x"] > 0
    assert timer.take() == {}


def test_a_log_is_cut_at_the_step_and_at_a_half_written_line(tmp_path):
    lines = [json.dumps({"step": step}) + "\n" for step in range(4)]
    (tmp_path / METRICS_FILE).write_text("".join(lines) + '{"step": 1, "rew')
    writers = SimpleNamespace(tensorboard=None, cut_csv=lambda step: None)
    Recorder(tmp_path, writers, first_line=3)
    assert (tmp_path / METRICS_FILE).read_text() == "".join(lines[:3])
    Recorder(tmp_path, writers, first_line=0)
    assert (tmp_path / METRICS_FILE).read_text() == ""


def test_learning_rate_schedules():
    def factors(schedule, warmup_steps):
        config = OptimizerConfig(schedule=schedule, warmup_steps=warmup_steps)
        return [learning_rate_factor(step, config, steps=8) for step in range(8)]

    assert factors("constant", 0) == [1.0] * 8
    assert factors("constant", 4)[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors("linear", 4)[3:] == [1.0, 1.0, 0.75, 0.5, 0.25]
    cosine = factors("cosine", 0)
    assert cosine[0] == 1.0 and cosine[4] == pytest.approx(0.5) and 0 < cosine[7] < 0.1


def test_streams_of_one_seed_are_apart():
    draws = [
        generator(5, stream, first, second).random()
        for stream in Stream
        for first in range(3)
        for second in range(3)
    ]
    assert len(set(draws)) == len(Stream) * 9


def test_final_table():
    table = final_table(0.4, 0.55, {"time/rollout": 3.0, "time/backward": 1.0})
    assert "+15.0 points" in table
    assert table.index("rollout") < table.index("backward")
    assert "75%" in table
