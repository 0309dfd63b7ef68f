"""Properties of gathering over ranks: any sizes of shards give the loss, gradients and rows of one batch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from mclip_fairseq.losses import gather as gather_module
from mclip_fairseq.losses import (
    gather_rows,
    global_info_nce,
    sum_over_ranks,
    symmetric_info_nce,
)
from tests.random_batches import batch, few, same, seeds
from tests.runs import HANG


class Threads:
    """A process group of threads: what the module of gathers asks of `torch.distributed`."""

    ProcessGroup = object
    ReduceOp = torch.distributed.ReduceOp

    def __init__(self, world: int) -> None:
        self.world = world
        self.barrier = threading.Barrier(world)
        self.slots: list[Tensor] = [torch.zeros(())] * world
        self.local = threading.local()

    def is_available(self) -> bool:
        return True

    is_initialized = is_available

    def get_world_size(self, group: object = None) -> int:
        return self.world

    def get_rank(self, group: object = None) -> int:
        rank: int = self.local.rank
        return rank

    def exchange(self, tensor: Tensor) -> list[Tensor]:
        self.slots[self.local.rank] = tensor.clone()
        self.barrier.wait(HANG)
        found = list(self.slots)
        self.barrier.wait(HANG)
        return found

    def all_gather(self, parts: list[Tensor], tensor: Tensor, group: object = None) -> None:
        for part, other in zip(parts, self.exchange(tensor), strict=True):
            part.copy_(other)

    def all_gather_into_tensor(self, whole: Tensor, tensor: Tensor, group: object = None) -> None:
        whole.copy_(torch.cat(self.exchange(tensor)))

    def reduce_scatter_tensor(self, own: Tensor, tensor: Tensor, group: object = None) -> None:
        own.copy_(torch.stack(self.exchange(tensor)).sum(0).chunk(self.world)[self.get_rank()])

    def all_reduce(self, tensor: Tensor, op: object = ReduceOp.SUM, group: object = None) -> None:
        values = torch.stack(self.exchange(tensor))
        tensor.copy_(values.amax(0) if op == self.ReduceOp.MAX else values.sum(0))

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        """Do something on every rank."""

        def one(rank: int) -> Any:
            self.local.rank = rank
            return work(rank)

        with ThreadPoolExecutor(self.world) as pool:
            return list(pool.map(one, range(self.world)))


@contextmanager
def ranks(world: int) -> Iterator[Threads]:
    with pytest.MonkeyPatch.context() as patch:
        threads = Threads(world)
        patch.setattr(gather_module, "dist", threads)
        yield threads


uneven = st.lists(st.integers(0, 4), min_size=2, max_size=4)


@few
@given(uneven, seeds, st.booleans(), st.sampled_from(["mean", "sum"]))
def test_ranks_of_any_sizes_are_one_batch(sizes: list[int], seed: int, grouped: bool, reduction: str) -> None:
    rows = sum(sizes)
    assume(rows)
    x, y, ids = batch(seed, rows)
    whole = torch.stack([x, y]).requires_grad_()
    scale = torch.tensor(7.0, dtype=torch.float64, requires_grad=True)
    expected = symmetric_info_nce(whole[0], whole[1], scale, same(ids) if grouped else None, reduction)
    expected.backward()
    starts = np.cumsum([0, *sizes]).tolist()

    def share(rank: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        own = slice(starts[rank], starts[rank + 1])
        mine = whole.detach()[:, own].clone().requires_grad_()
        factor = scale.detach().clone().requires_grad_()
        out = global_info_nce(mine[0], mine[1], factor, ids=ids[own] if grouped else None, reduction=reduction)
        out.loss.backward()
        assert mine.grad is not None
        assert factor.grad is not None
        return out.loss.detach(), mine.grad, factor.grad, sum_over_ranks(out.loss)

    with ranks(len(sizes)) as threads:
        shares = threads.run(share)
    assert whole.grad is not None
    torch.testing.assert_close(sum(loss for loss, *_ in shares), expected.detach(), rtol=1e-10, atol=1e-12)
    assert all(torch.equal(shares[0][3], total) for *_, total in shares)
    torch.testing.assert_close(torch.cat([grad for _, grad, *_ in shares], 1), whole.grad, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(sum(grad for _, _, grad, _ in shares), scale.grad, rtol=1e-9, atol=1e-11)


@few
@given(uneven, st.sampled_from([torch.float32, torch.int64, torch.bool]))
def test_gathered_rows_are_those_of_all_ranks_in_order(sizes: list[int], dtype: torch.dtype) -> None:
    everything = torch.arange(sum(sizes) * 2).view(-1, 2).remainder(3).to(dtype)
    parts = list(everything.split(sizes))
    with ranks(len(sizes)) as threads:
        for rank, (rows, position) in enumerate(threads.run(lambda rank: gather_rows(parts[rank]))):
            assert torch.equal(rows, everything)
            assert position == sum(sizes[:rank])
