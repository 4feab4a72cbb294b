"""The forecast of a step: times of collectives by hand, counted work, files of rates."""

import json
import math
import sys
import time

import pytest
import torch

from capo_ds import cli
from capo_ds.config import HOME, ConfigError, parse_config
from capo_ds.cost import measure
from capo_ds.cost.cluster import Cluster, load_cluster
from capo_ds.cost.collectives import Collectives
from capo_ds.cost.forecast import forecast, table
from capo_ds.cost.foretell import foretell, told
from capo_ds.cost.measure import in_turns
from capo_ds.cost.shape import Shape
from capo_ds.cost.step import Exchange, Step, step_of
from capo_ds.facts import without_prompts
from capo_ds.gradients import store

FILES = [HOME / "launchers" / "cluster" / f"{name}.yaml" for name in ("a800", "h100")]
FAST, SLOW = 1e-3, 1e-1  # seconds of a hop
SHAPE = Shape([(8, 64), (64, 8)] * 6, 10**6, 4 * 10**6, 20, 3, 64, 500, 3072)


def cluster(backend: str = "gloo", ranks: int = 1, **rates) -> Cluster:
    return Cluster(
        backend=backend,
        ranks=ranks,
        within={"seconds": FAST, "bytes_per_second": 1e6},
        between={"seconds": SLOW, "bytes_per_second": 1e4},
        rates={
            "passes": 1e9,
            "products": 1e9,
            "memory": 1e9,
            "sampling": 1e9,
            "optimizer": 0.5,
            "solve": {100: 1.0},
        }
        | rates,
        memory=1e9,
        host_memory=1e9,
    )


def step(ranks: int, response: int = 8, **settings) -> Step:
    rollout = {"prompts_per_step": 16, "group_size": 4, "max_prompt_tokens": 8}
    return Step(parse_config({"rollout": rollout} | settings), SHAPE, ranks, response)


@pytest.mark.parametrize(
    ("kind", "count", "hops", "sent"),
    [
        ("all_gather", 8000, 3, 6000),
        ("reduce_scatter", 8000, 3, 6000),
        ("all_reduce", 8000, 3.5, 12000),  # after the first hop, half of alpha each
        ("reduce", 8000, 2, 12000),
        ("broadcast", 8000, 1.5, 16000),
        ("all_to_all", 8000, 1, 6000),
    ],
)
def test_four_machines_of_one_rank(kind, count, hops, sent):
    seconds = Collectives(cluster(), 4).seconds(kind, count)
    assert seconds == pytest.approx(hops * SLOW + sent / 1e4)


def test_an_all_to_all_reaches_a_share_of_the_rate():
    slowed = cluster().model_copy(update={"all_to_all": 0.5})
    assert Collectives(slowed, 4).seconds("all_to_all", 8000) == pytest.approx(SLOW + 12000 / 1e4)
    assert Collectives(slowed, 4).seconds("all_gather", 0) == pytest.approx(3 * SLOW)


def test_one_machine_uses_its_own_links_and_one_rank_none():
    assert Collectives(cluster(ranks=2), 1).seconds("all_gather", 8000) == pytest.approx(
        FAST + 4000 / 1e6
    )
    for kind in ("all_gather", "all_reduce", "reduce", "broadcast", "all_to_all"):
        assert Collectives(cluster(), 1).seconds(kind, 8000) == 0


def test_ranks_of_a_machine_share_its_adapters():
    """Two machines of two ranks: half of what a rank exchanges leaves the machine."""
    seconds = Collectives(cluster(ranks=2), 2).seconds("all_to_all", 8000)
    assert seconds == pytest.approx(SLOW + 2 * 4000 / 1e4)
    ring = Collectives(cluster(ranks=2), 2).seconds("all_gather", 8000)
    assert ring == pytest.approx(2 * SLOW + FAST + 6000 / 1e4)


def test_nccl_takes_trees_for_what_is_small():
    collectives = Collectives(cluster("nccl", ranks=8), 64)
    assert collectives.seconds("all_reduce", 0) == pytest.approx(2 * (6 * SLOW + 3 * FAST))
    assert collectives.seconds("reduce", 0) == pytest.approx(6 * SLOW + 3 * FAST)


def test_the_solve_goes_through_what_was_measured():
    rates = cluster(solve={512: 0.04, 2048: 0.65}).rates
    assert rates.solve_seconds(512) == pytest.approx(0.04)
    assert rates.solve_seconds(2048) == pytest.approx(0.65)
    assert rates.solve_seconds(1024) == pytest.approx((0.04 * 0.65) ** 0.5)
    assert rates.solve_seconds(4096) == pytest.approx(0.65 * 2**2.4)
    assert rates.solve_seconds(256) == pytest.approx(0.02)
    assert cluster().rates.solve_seconds(200) == pytest.approx(2**2.4)


def test_sharing_out_leaves_the_gram_matrix_to_grow():
    found = {ranks: forecast(step(ranks), cluster()) for ranks in (1, 2, 4)}
    assert found[1]["gram"].exchange == 0
    for phase in ("backward", "gram", "reconstruct"):
        assert found[2][phase].work == pytest.approx(2 * found[4][phase].work)
    assert found[2]["solve"].work == found[4]["solve"].work
    assert found[4]["gram"].sent < found[2]["gram"].sent
    assert "step" in table(found[4])


def test_a_sketch_takes_columns_and_adds_the_norms():
    exact = step(4).phases()
    sketched = step(4, gradients={"sketch": "sparse", "sketch_dim": 64}).phases()
    columns = {"exact": SHAPE.trained, "sketched": 64}
    counts = [
        sum(one.count * one.times for one in phases["gram"].exchanges if one.kind == "all_to_all")
        for phases in (exact, sketched)
    ]
    assert counts == [16 * 4 * columns["exact"], 16 * 4 * columns["sketched"]]
    assert any(one.kind == "all_to_all" for one in sketched["reconstruct"].exchanges)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_files_that_ship_can_be_read_and_written(file, tmp_path):
    known = load_cluster(str(file))
    again = tmp_path / "again.yaml"
    again.write_text(known.text())
    assert load_cluster(str(again)) == known
    whole = sum(one.seconds for one in forecast(step(16), known).values())
    assert math.isfinite(whole)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("ranks: 8", "backend: is missing"),
        (f"{FILES[0].read_text()}\nspeed: 1", "speed: no such key; remove it"),
        (FILES[0].read_text().replace("between:", "betwen:"), "betwen: .*did you mean between?"),
        (FILES[0].read_text().replace("{applied: 1.1e+10}", "{aplied: 1}"), "aplied: .* applied?"),
        ("Rates of our machines, as told on the telephone, in no form", "the file: .*found 'Rates"),
        ("rates: 3", r"rates: keys and values belong here.*found 3"),
        (FILES[0].read_text().replace("ranks: 8", "ranks: 0"), "ranks: .*got 0"),
        (FILES[0].read_text().replace("1.6e+11", "-1"), r"within\.bytes_per_second: .*got -1"),
        (FILES[0].read_text().replace("nccl", "mpi"), "backend: .*got 'mpi'"),
        ("", "the file: keys and values belong here.*found nothing"),
    ],
)
def test_a_file_that_cannot_be_used(text, told, tmp_path):
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=f"(?s)--cluster .*{told}.*builtin:a800"):
        load_cluster(str(file))


def test_a_wrong_key_is_told_once(tmp_path):
    file = tmp_path / "cluster.yaml"
    file.write_text(FILES[0].read_text().replace("passes:", "pases:"))
    with pytest.raises(ConfigError) as refused:
        load_cluster(str(file))
    told = str(refused.value).splitlines()
    assert told[0].endswith("rates.pases: no such key; did you mean passes?") and len(told) == 2


def test_those_that_ship_have_a_name_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [load_cluster(f"builtin:{file.stem}") for file in FILES] == [*map(load, FILES)]
    with pytest.raises(ConfigError, match=r"--cluster builtin:h200: .* there are a800, h100"):
        load_cluster("builtin:h200")


def load(file) -> Cluster:
    return load_cluster(str(file))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"--cluster .*No such file.*--dry-run --nodes 1"):
        load_cluster(str(tmp_path / "none.yaml"))


def test_rates_name_the_link_that_is_missing():
    known = cluster(ranks=2)
    known.model_copy(update={"between": None}).check(1, "none")  # one machine needs none
    with pytest.raises(ConfigError, match=r"--nodes 2: .*no link between .*builtin:h100"):
        known.model_copy(update={"between": None}).check(2, "none")
    with pytest.raises(ConfigError, match="no link within"):
        known.model_copy(update={"within": None}).check(1, "none")
    assert "between" not in known.model_copy(update={"between": None}).text()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_solve_of_a_file_goes_through_its_points(file):
    rates = load_cluster(str(file)).rates
    for samples, seconds in rates.solve.items():
        assert rates.solve_seconds(samples) == pytest.approx(seconds)


def sketching(store: str, **gradients) -> dict[str, dict[str, float]]:
    """Of a rank's 32 samples in micro-batches of 8, in units of one gradient's bytes."""
    made = step(2, gradients={"store": store} | gradients, train={"micro_batch_size": 8})
    size = 4 * SHAPE.trained
    found = {}
    for phase in ("backward", "gram"):
        work = made.phases()[phase].work
        found[phase] = {k: work[k] / size for k in ("applied", "drawn") if work.get(k)}
    return found


def test_gradients_are_sketched_where_the_store_does_it(monkeypatch):
    """All together, one micro-batch after another, or those that wait for each other; the last of
    which are sketched when they are asked for."""
    whole = {"backward": {}, "gram": {"applied": 32, "drawn": 1}}
    assert sketching("device", sketch="sparse") == sketching("host", sketch="rademacher") == whole
    in_turns = {"backward": {"applied": 32, "drawn": 4}, "gram": {}}
    assert sketching("recompute", sketch="sparse") == in_turns
    assert sketching("recompute", sketch="rademacher") == whole  # there is room for all
    monkeypatch.setattr(store, "HELD_BYTES", 4 * SHAPE.trained * 20)  # for two micro-batches
    waiting = {"backward": {"applied": 16, "drawn": 1}, "gram": {"applied": 16, "drawn": 1}}
    assert sketching("recompute", sketch="rademacher") == waiting
    monkeypatch.setattr(store, "HELD_BYTES", 4 * SHAPE.trained * 7)
    assert sketching("recompute", sketch="rademacher") == in_turns


def test_a_dense_sketch_costs_as_its_dimension():
    half = sketching("device", sketch="rademacher", sketch_dim=4096)["gram"]
    assert half == {"applied": 16, "drawn": 0.5}
    assert sketching("device", sketch="sparse", sketch_dim=4096)["gram"]["applied"] == 32


def test_each_sketch_goes_by_its_own_rates():
    rates = {"sketch": {"sparse": {"applied": 1e6}, "rademacher": {"applied": 1e5, "drawn": 1e4}}}

    def seconds(sketch: str) -> float:
        made = step(2, gradients={"sketch": sketch})
        return forecast(made, cluster(**rates))["gram"].work

    each = 4 * SHAPE.trained  # bytes of a gradient, of which a rank has 32
    difference = seconds("rademacher") - seconds("sparse")
    assert difference == pytest.approx(each * (32 / 1e5 + 1 / 1e4 - 32 / 1e6))
    with pytest.raises(ConfigError, match=r"gradients.sketch: .* holds no 'outer'"):
        cluster(**rates).check(1, "outer")


def test_passes_that_give_each_sample_its_gradient_take_longer():
    def seconds(factor: float, **settings) -> float:
        return forecast(step(1, **settings), cluster(per_sample=factor))["backward"].work

    plain = {"aggregator": "mean", "measure_conflict": False}
    assert seconds(1.25) == pytest.approx(1.25 * seconds(1.0))
    assert seconds(1.25, **plain) == seconds(1.0, **plain) == pytest.approx(seconds(1.0))


def test_the_busiest_rank_is_counted():
    """Of mini-batches that are drawn at random from the prompts of all ranks, too."""
    assert step(16).mine == step(64).mine == 4  # a prompt each, or none
    assert "no prompts" not in told(step(16), cluster())[2]
    assert told(step(64), cluster())[2].endswith(without_prompts(step(64).config, 64))
    assert "; ranks 16 to 63 have no prompts in a step" in told(step(64), cluster())[2]
    assert told(step(12), cluster())[2].endswith("; 8 of the 12 ranks have one less")
    alone = step(16, objective={"minibatches": 16})
    assert alone.mine == 4  # of one prompt, which one rank has
    assert alone.phases()["backward"].work == pytest.approx(
        {"per_sample": 16 * step(16).phases()["backward"].work["per_sample"]}
    )
    assert 8 < step(2, objective={"minibatches": 4}).mine < 16  # half of 4 prompts, or more


def test_bytes_of_the_busiest_rank():
    for kind, share in (("all_gather", 0.75), ("all_reduce", 1.5), ("reduce", 1), ("broadcast", 1)):
        assert Exchange(kind, 100, 2).sent(4) == 200 * share
        assert Exchange(kind, 100, 2).sent(1) == 0


@pytest.mark.parametrize(("sampler", "phase"), [("hf", "rollout"), ("process", "sync")])
def test_at_zero_3_a_sampler_with_its_own_weights_is_sent_the_factors(sampler, phase):
    settings = {"prompts_per_step": 16, "group_size": 4, "max_prompt_tokens": 8, "sampler": sampler}
    phases = step(4, rollout=settings, deepspeed="ds_configs/zero3.json").phases()
    sent = {name: phases[name].sent(4) for name in ("rollout", "sync")}
    expected = SHAPE.stored if sampler == "hf" else 4 * SHAPE.trained
    assert sent[phase] == pytest.approx(0.75 * expected, rel=0.01)
    assert sum(sent.values()) == pytest.approx(sent[phase], rel=0.1)


def test_the_bounds_are_assumed_or_what_is_asked_for():
    """And said."""
    bound = step_of(parse_config({}), SHAPE, "device", 1)
    assert bound.prompt == bound.config.rollout.max_prompt_tokens
    assert bound.response == bound.config.rollout.max_new_tokens
    shorter = step_of(parse_config({}), SHAPE, "device", 1, prompt=5, response=7)
    most = bound.phases()["backward"].work["per_sample"]
    assert shorter.phases()["backward"].work["per_sample"] < 0.2 * most
    assert f"prompts of {bound.prompt} tokens (rollout.max_prompt_tokens)" in _second_line(bound)
    told = f"prompts of 5 tokens (--prompt-tokens; rollout.max_prompt_tokens: {bound.prompt})"
    assert told in _second_line(shorter) and "responses of 7 tokens (--resp" in _second_line(
        shorter
    )


def _second_line(made: Step) -> str:
    return told(made, cluster())[1]


def test_a_rollout_that_is_a_lower_bound_says_so():
    assert "lower bound" in told(step(4, rollout={"sampler": "server"}), cluster())[-1]
    assert "lower bound" not in "".join(told(step(4), cluster()))


@pytest.fixture
def qwen(tmp_path):
    """A folder with a config alone."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1000}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"} | sizes | heads))
    return tmp_path


def foretold(folder, memory: float = 1e12, **settings) -> None:
    file = folder / "cluster.yaml"
    known = load_cluster(str(FILES[1])).model_copy(update={"memory": memory, "host_memory": memory})
    file.write_text(known.text())
    config = parse_config({"model": {"path": str(folder), "dtype": "bfloat16"}} | settings)
    foretell(config, 8, str(file))


@pytest.mark.usefixtures("process_group")
def test_what_does_not_fit_is_refused_below_the_forecast(qwen, capsys):
    foretold(qwen)
    whole = capsys.readouterr().out
    assert "prompts of" in whole and "aggregator:" not in whole  # no settings
    for settings in ({}, {"gradients": {"store": "device"}}, {"gradients": {"sketch": "sparse"}}):
        with pytest.raises(ConfigError, match=r"^does not fit: needs .* of 1.0 MiB, .*lower"):
            foretold(qwen, 2**20, **settings)
        assert "memory per rank, estimated" in capsys.readouterr().out


@pytest.mark.usefixtures("process_group")
def test_ranks_that_a_sampler_cannot_share_are_refused(qwen):
    sampler = {"sampler": "vllm", "tensor_parallel": 3}
    with pytest.raises(ConfigError, match=r"rollout.tensor_parallel: 3 does not divide 64 ranks"):
        foretold(qwen, rollout=sampler)
    foretold(qwen, rollout=sampler | {"tensor_parallel": 4})
    with pytest.raises(ConfigError, match=r"model.dtype: float32, but vLLM"):
        foretold(qwen, rollout={"sampler": "vllm"}, model={"path": str(qwen), "dtype": "float32"})


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("flag", ["prompt", "response"])
def test_lengths_beyond_the_bounds_are_refused(qwen, flag):
    config = parse_config({"model": {"path": str(qwen)}})
    with pytest.raises(ConfigError, match=rf"--{flag}-tokens 99999: more than rollout.max_"):
        foretell(config, 1, str(FILES[1]), **{flag: 99999})


@pytest.mark.usefixtures("process_group")
def test_what_a_rank_waits_is_not_its_rate():
    """Here asleep, as for a core that others are at; on CPU."""

    def busy() -> None:
        rows = torch.ones(200, 200)
        for _ in range(50):
            rows = rows @ rows / 200

    def waits() -> None:
        time.sleep(0.03)
        busy()

    alone, waiting = in_turns(busy, waits)
    assert 0 < waiting < 0.01 + 2 * alone


def test_two_times_of_which_the_longer_came_out_shorter_give_no_endless_rate(monkeypatch):
    monkeypatch.setattr(measure, "in_turns", lambda *_: [1.0, 0.8])
    monkeypatch.setattr(measure, "HuggingFaceSampler", lambda *_: None)
    one, never_called = step(1), torch.nn.Linear(1, 1)
    token = measure.LEAST * 0.8 / measure.DECODED  # seconds
    weights, cache = SHAPE.stored + 4 * SHAPE.trained, 64 * 12 * SHAPE.cache  # 8 tokens, 4 more
    assert measure._sampling(never_called, one) == pytest.approx((weights + cache) / token)


@pytest.mark.usefixtures("process_group")
def test_what_exceeds_the_context_is_refused_as_by_a_run(qwen, capsys):
    known = json.loads((qwen / "config.json").read_text())
    (qwen / "config.json").write_text(json.dumps(known | {"max_position_embeddings": 40}))
    rollout = {"max_prompt_tokens": 30, "max_new_tokens": 20}
    config = parse_config({"model": {"path": str(qwen)}, "rollout": rollout})
    run = "rollout.max_new_tokens: 20 after a prompt of 30 tokens exceed a context of 40; lower it"
    with pytest.raises(ConfigError, match=rf"^{run}.* by --prompt-tokens how long yours are$"):
        foretell(config, 8, str(FILES[1]))
    with pytest.raises(ConfigError, match=r"after a prompt of 21 tokens.*leave out the prompt$"):
        foretell(config, 8, str(FILES[1]), prompt=21, response=1)  # a run's may be longer
    assert capsys.readouterr().out == ""
    foretell(config, 8, str(FILES[1]), prompt=20)
    assert "prompts of 20 tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--prompt-tokens", "3"], "add --dry-run"),
        (["--dry-run", "--prompt-tokens", "3"], "add --nodes K"),
        (["--dry-run", "--nodes", "2", "--prompt-tokens", "0"], "'0' is no number from 1"),
        (["--dry-run", "--nodes", "2", "--prompt-tokens", "3", "--response-tokens", "4"], None),
    ],
)
def test_a_forecasts_arguments_come_together(words, told, monkeypatch, capsys):
    given = []
    monkeypatch.setattr(cli, "_run", lambda args, *_: given.append(args))
    monkeypatch.setattr(sys, "argv", ["train", "--config", "builtin:smoke", *words])
    if told is None:
        cli.main("", lambda _: None, lambda *_: None)
        assert (given[0].prompt_tokens, given[0].response_tokens) == (3, 4)
    else:
        with pytest.raises(SystemExit):
            cli.main("", lambda _: None, lambda *_: None)
        assert told in capsys.readouterr().err
