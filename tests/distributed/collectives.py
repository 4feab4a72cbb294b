"""Checks of the collectives, run on several ranks by test_collectives.py."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import repeat

import numpy as np
import torch
import torch.distributed as dist

from capo_ds.config import ConfigError
from capo_ds.distributed import comm, gram
from capo_ds.distributed.gram import gram_matrices, gram_matrix, norms_of_sums


def check_gram(samples_per_rank: list[int], dtype: torch.dtype = torch.float64) -> None:
    """Uneven samples, ranks with none, blocks narrower than the number of ranks; bytes sent."""
    generator = torch.Generator().manual_seed(0)
    total, widths = sum(samples_per_rank), (7, 1, 64)
    blocks = [torch.randn(total, width, generator=generator).to(dtype) for width in widths]
    first = sum(samples_per_rank[: comm.rank()])
    mine = slice(first, first + samples_per_rank[comm.rank()])
    comm.take_bytes_sent()
    found = gram_matrix((block[mine] for block in blocks), samples_per_rank)
    sent = comm.take_bytes_sent()
    if comm.is_main():
        whole = torch.cat(blocks, 1).double()
        tolerance = 1e-12 if dtype == torch.float64 else 1e-5
        np.testing.assert_allclose(found, whole @ whole.T, rtol=tolerance, atol=tolerance)
    else:
        assert found is None
    check_bytes(sent, total, sum(widths), dtype.itemsize)


def check_bytes(sent: dict[str, int], samples: int, columns: int, size: int) -> None:
    """Over all ranks, the exchange is N k numbers less what stays where it is; the reduction is a
    triangle of float64 from every rank but the first: N (N + 1) 4 bytes."""
    ranks = comm.world_size()
    exchanged, reduced = comm.sum_over_ranks(sent.get("all_to_all", 0), sent["reduce"])
    assert exchanged <= samples * columns * size
    if ranks > 1 and samples:
        assert exchanged >= 0.5 * samples * columns * size * (ranks - 1) / ranks
    assert reduced == (ranks - 1) * samples * (samples + 1) * 4


@contextmanager
def watched_exchanges() -> Iterator[list[int]]:
    """Entries that each exchange inside receives."""
    received_entries: list[int] = []
    all_to_all = comm.all_to_all

    def watched(sent: torch.Tensor, sizes: list[int], received: torch.Tensor, counts: list[int]):
        received_entries.append(received.numel())
        all_to_all(sent, sizes, received, counts)

    comm.all_to_all = watched
    try:
        yield received_entries
    finally:
        comm.all_to_all = all_to_all


def check_bounded_buffers(samples_per_rank: list[int]) -> None:
    """The same matrix, and no exchange larger than the buffer."""
    entries, gram.BUFFER_ENTRIES = gram.BUFFER_ENTRIES, 100
    with watched_exchanges() as exchanges:
        check_gram(samples_per_rank)
    foretold = gram.exchange_count([7, 1, 64], repeat(0), sum(samples_per_rank), comm.world_size())
    gram.BUFFER_ENTRIES = entries
    assert max(exchanges, default=0) <= 100
    assert len(exchanges) == (foretold if comm.world_size() > 1 else 0)


def check_exchanges_together() -> None:
    """Neighbouring matrices of one Gram matrix travel together, and give what each gives alone."""
    world, generator = comm.world_size(), torch.Generator().manual_seed(comm.rank())
    matrices = [torch.randn(2, width, generator=generator) for width in (5, 9, 1, 70, 3)]
    numbers = [0, 0, 1, 1, 1]
    with watched_exchanges() as exchanges:
        found = gram_matrices(matrices, [2] * world, numbers, count=2)
    assert len(exchanges) == (2 if world > 1 else 0)
    assert gram.exchange_count([5, 9, 1, 70, 3], numbers, 2 * world, world) == 2
    alone = [gram_matrix([matrix], [2] * world) for matrix in matrices]
    if comm.is_main():
        np.testing.assert_allclose(found[0], sum(alone[:2]), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found[1], sum(alone[2:]), rtol=1e-5, atol=1e-5)
    with watched_exchanges() as exchanges:
        norms = norms_of_sums(matrices, [2 * matrix for matrix in matrices])
    assert len(exchanges) == (1 if world > 1 else 0)
    whole = torch.cat([matrix.flatten() for matrix in matrices])
    dist.all_reduce(whole)
    np.testing.assert_allclose(norms, [whole.norm(), 2 * whole.norm()], rtol=1e-5)


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


def check_all() -> None:
    world = comm.world_size()
    check_gram([3] * world)
    check_gram(list(range(world)))
    check_gram([4] + [0] * (world - 1))
    check_gram([3] * world, torch.bfloat16)
    check_bounded_buffers(list(range(1, world + 1)))
    check_exchanges_together()
    check_sharing()
    check_failures_reach_everyone()
    print("collectives are sound", flush=True)


if __name__ == "__main__":
    comm.init()
    check_all()
    comm.finish()
