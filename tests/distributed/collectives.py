"""Checks of the collectives, run on several ranks by test_collectives.py."""

import numpy as np
import torch

from capo_ds.config import ConfigError
from capo_ds.distributed import comm
from capo_ds.distributed.gram import gram_matrix


def check_gram(samples_per_rank: list[int]) -> None:
    """Uneven samples, ranks with none, blocks narrower than the number of ranks."""
    generator = np.random.default_rng(0)
    blocks = [generator.normal(size=(sum(samples_per_rank), width)) for width in (7, 1, 64)]
    first = sum(samples_per_rank[: comm.rank()])
    mine = slice(first, first + samples_per_rank[comm.rank()])
    gram = gram_matrix([torch.tensor(block[mine]) for block in blocks], samples_per_rank)
    if comm.is_main():
        whole = np.concatenate(blocks, axis=1)
        np.testing.assert_allclose(gram, whole @ whole.T, rtol=1e-12)
    else:
        assert gram is None


def check_sharing() -> None:
    items = list(range(11))
    shares = comm.gather(comm.shard(items))
    assert sorted(item for share in shares for item in share) == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert comm.unshard(comm.shard(items)) == items
    assert comm.broadcast(comm.rank()) == 0
    world = comm.world_size()
    assert comm.sum_over_ranks(1.0, comm.rank()) == [world, world * (world - 1) / 2]


def check_failures_reach_everyone() -> None:
    last = comm.world_size() - 1
    try:
        with comm.together("lunch"):
            if comm.rank() == last:
                raise ValueError("no soup")
        raise AssertionError("the failure was swallowed")
    except comm.PeerError as error:
        assert str(error) == f"lunch failed on rank {last}: ValueError: no soup"
    try:
        with comm.together("lunch"):
            if comm.rank() == last:
                raise ConfigError("menu: no soup; choose another")
        raise AssertionError("the failure was swallowed")
    except ConfigError as error:
        assert str(error) == "menu: no soup; choose another"
    try:
        comm.on_main("sum", lambda: 1 / 0)
        raise AssertionError("the failure was swallowed")
    except comm.PeerError as error:
        assert "sum failed on rank 0: ZeroDivisionError" in str(error)
    assert comm.on_main("sum", lambda: 5) == 5


if __name__ == "__main__":
    comm.init()
    world = comm.world_size()
    check_gram([3] * world)
    check_gram(list(range(world)))
    check_gram([4] + [0] * (world - 1))
    check_sharing()
    check_failures_reach_everyone()
    comm.finish()
    print("collectives are sound")
