"""Losses over two and three gloo processes: the value and the gradients of one process over the union."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from mclip_fairseq.losses import contrastive, gather_rows, global_info_nce, sum_over_ranks, symmetric_info_nce
from mclip_fairseq.losses import gather as gather_module
from tests.runs import RANK, gloo_group, start_ranks

pytestmark = pytest.mark.distributed
SPLITS: dict[int, list[tuple[int, ...]]] = {
    2: [(4, 4), (3, 2), (0, 5), (1, 0), (0, 0)],
    3: [(2, 2, 2), (3, 2, 4), (4, 0, 1), (0, 0, 3), (0, 0, 0)],
}


def join_and_check(rank: int, world: int, check: str, store: str) -> None:
    """One rank: joins the others and runs a check of this file."""
    with gloo_group(rank, world, store):
        globals()[check](rank, world)


def start(check: Callable[[int, int], None], world: int, folder: Path) -> None:
    """Run a check in `world` processes, which show their tracebacks on stderr."""
    start_ranks("join_and_check", world, (check.__name__, str(folder / "store")), file=__file__)


def union(rows: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """All ranks' rows before normalisation (rows, x and y, dim), their ids, and the scale; equal on all ranks."""
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn(rows, 2, 6, generator=generator, dtype=torch.float64)
    ids = torch.randint(0, max(rows // 2, 1), (rows,), generator=generator)
    return raw, ids, torch.tensor(9.0, dtype=torch.float64)


def leaves(raw: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    return raw.clone().requires_grad_(), scale.clone().requires_grad_()


def loss_error(
    sizes: tuple[int, ...], rank: int, grouped: bool, reduction: str, group: Any = None
) -> tuple[float, float]:
    """Distance between the loss over ranks and that of one process: of the value, and of the gradients."""
    raw, ids, start_scale = union(sum(sizes), seed=sum(sizes))
    whole, whole_scale = leaves(raw, start_scale)
    x, y = F.normalize(whole, dim=2).unbind(1)
    positives = ids[:, None] == ids if grouped else None
    expected = symmetric_info_nce(x, y, whole_scale, positives, reduction)
    expected.backward()

    own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    local, scale = leaves(raw[own], start_scale)
    x, y = F.normalize(local, dim=2).unbind(1)
    out = global_info_nce(x, y, scale, ids=ids[own] if grouped else None, reduction=reduction, group=group)
    out.loss.backward()
    assert out.rows == sizes[rank]
    assert local.grad is not None
    assert scale.grad is not None
    assert whole.grad is not None
    assert whole_scale.grad is not None
    value = (sum_over_ranks(out.loss, group) - expected.detach()).abs()
    errors = [(sum_over_ranks(scale.grad, group) - whole_scale.grad).abs()]
    errors += [(local.grad - whole.grad[own]).abs().max()] if sizes[rank] else []

    hits = sum_over_ranks(torch.stack([out.hits_xy, out.hits_yx]), group)
    x, y = F.normalize(raw, dim=2).unbind(1)
    alone = global_info_nce(x, y, start_scale, ids=ids if grouped else None, gather=False)
    assert hits.tolist() == [int(alone.hits_xy), int(alone.hits_yx)]
    assert alone.rows == sum(sizes)
    return float(value), float(torch.stack(errors).max())


def check_loss(rank: int, world: int) -> None:
    for sizes in SPLITS[world]:
        for grouped in (False, True):
            for reduction in ("mean", "sum"):
                value, gradient = loss_error(sizes, rank, grouped, reduction)
                assert value < 1e-12, (sizes, grouped, reduction)
                assert gradient < 1e-12, (sizes, grouped, reduction)


def check_subgroup(rank: int, world: int) -> None:
    group = dist.new_group([0, 2])  # the last rank is number 1 in it
    if rank != 1:
        assert max(loss_error((3, 2), min(rank, 1), True, "mean", group)) < 1e-12


class LocalSlice(gather_module._GatherRows):
    """The usual mistake: the gradient that this rank's loss alone has for its rows."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        offset = gather_module.gather_offset(ctx.sizes, ctx.group)
        return grad[offset : offset + ctx.sizes[dist.get_rank(ctx.group)]], None, None


def check_negative_control(rank: int, world: int) -> None:
    exact = gather_module._GatherRows
    gather_module._GatherRows = LocalSlice  # type: ignore[misc]
    value, gradient = loss_error((3, 2), rank, False, "mean")
    gather_module._GatherRows = exact  # type: ignore[misc]
    assert value < 1e-12
    assert gradient > 1e-3  # what check_loss would have seen
    assert loss_error((3, 2), rank, False, "mean")[1] < 1e-12


def check_rows(rank: int, world: int) -> None:
    for sizes in SPLITS[world]:
        offset = sum(sizes[:rank])
        for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool):
            everything = torch.arange(sum(sizes) * 6).view(sum(sizes), 3, 2).remainder(7).to(dtype)
            mine = everything[offset : offset + sizes[rank]]
            strided = mine.transpose(1, 2).contiguous().transpose(1, 2)
            rows, position = gather_rows(strided)
            assert position == offset
            assert rows.dtype == dtype
            assert torch.equal(rows, everything)
            assert torch.equal(gather_rows(mine[:, 0, 0])[0], everything[:, 0, 0])
            if dtype.is_floating_point:
                check_gradient_of_rows(strided, everything, rank, world, slice(offset, offset + sizes[rank]))


def check_gradient_of_rows(mine: Tensor, everything: Tensor, rank: int, world: int, own: slice) -> None:
    """Rank r weighs all rows by r + 1 times their value: the gradient is the sum of these weights."""
    leaf = mine.clone().requires_grad_()
    (gather_rows(leaf)[0] * everything * (rank + 1)).sum().backward()
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, everything[own] * sum(range(1, world + 1)))


def check_sums(rank: int, world: int) -> None:
    value = torch.tensor([[1.0], [rank]], requires_grad=True)
    total = sum_over_ranks(value.T)
    assert total.tolist() == [[world, sum(range(world))]]
    assert not total.requires_grad
    assert value.tolist() == [[1.0], [rank]]  # the argument stays as it is
    assert int(sum_over_ranks(torch.tensor(rank))) == sum(range(world))


def check_local(rank: int, world: int) -> None:
    """`gather=False` asks nothing of the others: only rank 0 computes a loss."""
    if rank == 0:
        raw, ids, scale = union(5, seed=1)
        x, y = F.normalize(raw, dim=2).unbind(1)
        out = global_info_nce(x, y, scale, ids=ids, gather=False)
        torch.testing.assert_close(out.loss, symmetric_info_nce(x, y, scale, ids[:, None] == ids), rtol=1e-12, atol=0)


@pytest.mark.parametrize("world", [2, 3])
def test_loss_and_gradients_are_those_of_one_process(world: int, tmp_path: Path) -> None:
    start(check_loss, world, tmp_path)


def test_rank_is_the_one_in_the_group(tmp_path: Path) -> None:
    start(check_subgroup, 3, tmp_path)


def test_a_local_gradient_would_be_noticed(tmp_path: Path) -> None:
    start(check_negative_control, 2, tmp_path)


@pytest.mark.parametrize("world", [2, 3])
def test_rows_come_in_rank_order(world: int, tmp_path: Path) -> None:
    start(check_rows, world, tmp_path)


def test_sums(tmp_path: Path) -> None:
    start(check_sums, 3, tmp_path)


def test_no_gathering_on_request(tmp_path: Path) -> None:
    start(check_local, 2, tmp_path)


def test_without_a_process_group_one_rank_is_the_world() -> None:
    rows = torch.ones(2, 3, requires_grad=True)
    assert gather_rows(rows) == (rows, 0)
    assert torch.equal(sum_over_ranks(rows), rows)
    assert not sum_over_ranks(rows).requires_grad
    assert contrastive.gather_rows is gather_rows


if __name__ == RANK:
    function, values = call  # type: ignore[name-defined] # noqa: F821
    globals()[function](*values)
