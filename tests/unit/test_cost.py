"""The forecast of a step: times of collectives by hand, counted work, files of rates."""

import math

import pytest

from capo_ds.config import HOME, ConfigError, parse_config
from capo_ds.cost.cluster import Cluster, load_cluster
from capo_ds.cost.collectives import Collectives
from capo_ds.cost.forecast import forecast, table
from capo_ds.cost.step import Shape, Step

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
        ("all_reduce", 8000, 6, 12000),
        ("reduce", 8000, 4, 12000),
        ("broadcast", 8000, 2, 16000),
        ("all_to_all", 8000, 1, 6000),
    ],
)
def test_four_machines_of_one_rank(kind, count, hops, sent):
    seconds = Collectives(cluster(), 4).seconds(kind, count)
    assert seconds == pytest.approx(hops * SLOW + sent / 1e4)


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
        ("ranks: 8", "backend: field required"),
        (f"{FILES[0].read_text()}\nspeed: 1", "speed: extra inputs"),
        (FILES[0].read_text().replace("ranks: 8", "ranks: 0"), "ranks: .*got 0"),
        (FILES[0].read_text().replace("1.6e+11", "-1"), r"within\.bytes_per_second: .*got -1"),
        (FILES[0].read_text().replace("nccl", "mpi"), "backend: .*got 'mpi'"),
        ("", "the file: .*got None"),
    ],
)
def test_a_file_that_cannot_be_used(text, told, tmp_path):
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=f"(?s)--cluster .*{told}.*a800.yaml"):
        load_cluster(str(file))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"--cluster .*No such file.*--dry-run --nodes 1"):
        load_cluster(str(tmp_path / "none.yaml"))


def test_rates_name_the_link_that_is_missing():
    known = cluster(ranks=2)
    forecast(step(2), known.model_copy(update={"between": None}))  # one machine needs none
    with pytest.raises(ConfigError, match=r"--nodes 2: .*no link between .*a800\.yaml"):
        forecast(step(4), known.model_copy(update={"between": None}))
    with pytest.raises(ConfigError, match="no link within"):
        forecast(step(2), known.model_copy(update={"within": None}))
    assert "between" not in known.model_copy(update={"between": None}).text()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_solve_of_a_file_goes_through_its_points(file):
    rates = load_cluster(str(file)).rates
    for samples, seconds in rates.solve.items():
        assert rates.solve_seconds(samples) == pytest.approx(seconds)


def test_gradients_are_sketched_where_the_store_does_it():
    for store, phase in (("device", "gram"), ("recompute", "backward")):
        gradients = {"sketch": "sparse", "store": store}
        assert "sketch" in step(2, gradients=gradients).phases()[phase].work


def test_each_sketch_goes_by_its_own_rate():
    rates = {"sketch": {"sparse": 1e6, "rademacher": 1e5}}

    def seconds(sketch: str) -> float:
        made = step(2, gradients={"sketch": sketch, "sketch_dim": 64})
        return forecast(made, cluster(**rates))["gram"].work

    sketched = 4 * 32 * SHAPE.trained  # bytes of a rank's gradients
    difference = seconds("rademacher") - seconds("sparse")
    assert difference == pytest.approx(sketched * (1e-5 - 1e-6))
    with pytest.raises(ConfigError, match=r"gradients.sketch: .* holds no 'outer'"):
        seconds("outer")
