"""Every loss that gathers, over gloo ranks with uneven batches: value and gradients of one process over the union."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mclip_fairseq.losses import (
    distillation,
    gather_sizes,
    global_contrastive_tension_loss,
    global_distillation_loss,
    global_info_nce,
    global_one_to_k_info_nce,
    global_soft_label_loss,
    global_structure_loss,
    masked_word_loss,
    matching_loss,
    max_over_ranks,
    share_of_mean,
    sum_over_ranks,
    tiled,
)
from mclip_fairseq.losses import gather as gather_module
from mclip_fairseq.losses import matching as matching_module
from mclip_fairseq.losses import relational as relational_module
from mclip_fairseq.losses import tension as tension_module
from mclip_fairseq.losses.gather import every_nth
from tests.runs import RANK, gloo_group, start_ranks

pytestmark = pytest.mark.distributed
SPLITS: dict[int, list[tuple[int, ...]]] = {
    2: [(4, 4), (3, 2), (0, 5), (1, 0), (0, 0)],
    3: [(2, 2, 2), (3, 1, 4), (4, 0, 1), (0, 0, 3)],
}
DIM, TEXTS = 6, 3

# A loss of rows of (rows, 1 + TEXTS, DIM) vectors, their ids and a scale; without gathering, of one process.
Loss = Callable[[Tensor, Tensor, Tensor, bool], Tensor]


def distilled(kind: str, direction: str) -> Loss:
    def loss(rows: Tensor, ids: Tensor, scale: Tensor, gather: bool) -> Tensor:
        return global_distillation_loss(rows[:, 0], rows[:, 1], kind, scale, direction, gather=gather)

    return loss


def tension(reduction: str) -> Loss:
    def loss(rows: Tensor, ids: Tensor, scale: Tensor, gather: bool) -> Tensor:
        return global_contrastive_tension_loss(rows[:, 0], rows[:, 1], ids % 2, reduction, gather=gather)

    return loss


def contrast(grouped: bool, direction: str, reduction: str = "mean", block_rows: int = 0) -> Loss:
    def loss(rows: Tensor, ids: Tensor, scale: Tensor, gather: bool) -> Tensor:
        x, y = F.normalize(rows[:, :2], dim=2).unbind(1)
        way: dict[str, Any] = {"ids": ids if grouped else None, "direction": direction, "reduction": reduction}
        return global_info_nce(x, y, scale, **way, gather=gather, block_rows=block_rows if gather else 0).loss

    return loss


def one_to_k(block_rows: int) -> Loss:
    def loss(rows: Tensor, ids: Tensor, scale: Tensor, gather: bool) -> Tensor:
        rows = F.normalize(rows, dim=2)
        blocks = block_rows if gather else 0
        return global_one_to_k_info_nce(rows[:, 0], rows[:, 1:], scale, gather=gather, block_rows=blocks).loss

    return loss


def matched(rows: Tensor, ids: Tensor, scale: Tensor, gather: bool) -> Tensor:
    return matching_loss(rows[:, 0, :2] * scale, ids % 2, gather=gather)


def masked_words(rows: Tensor, ids: Tensor, scale: Tensor, gather: bool) -> Tensor:
    labels = torch.stack([ids % DIM, torch.where(ids % 2 == 0, ids % DIM, -100)], dim=1)
    return masked_word_loss(rows[:, :2] * scale, labels, gather=gather)


def soft_labels(direction: str) -> Loss:
    def loss(rows: Tensor, ids: Tensor, scale: Tensor, gather: bool) -> Tensor:
        bank = F.normalize(torch.randn(5, DIM, generator=torch.Generator().manual_seed(1), dtype=rows.dtype), dim=1)
        student, teacher = F.normalize(rows[:, :2], dim=2).unbind(1)
        return global_soft_label_loss(student, teacher, bank, scale, direction, gather=gather)

    return loss


def structure(rows: Tensor, ids: Tensor, scale: Tensor, gather: bool) -> Tensor:
    student, teacher = F.normalize(rows[:, :2], dim=2).unbind(1)
    return global_structure_loss(student, teacher[:, :4], gather=gather)


LOSSES: dict[str, Loss] = {
    "mse": distilled("mse", "both"),
    "cosine": distilled("cosine", "both"),
    "contrastive": distilled("contrastive", "both"),
    "contrastive, released": distilled("contrastive", "released"),
    "tension": tension("mean"),
    "tension, summed": tension("sum"),
    "one direction": contrast(True, "xy"),
    "several positives": contrast(True, "both"),
    "one to K": one_to_k(0),
    "blocks": contrast(False, "both", block_rows=2),
    "blocks, several positives": contrast(True, "both", block_rows=2),
    "blocks, summed": contrast(True, "both", "sum", block_rows=2),
    "blocks, one direction": contrast(True, "xy", block_rows=3),
    "blocks, one to K": one_to_k(2),
    "matching": matched,
    "masked words": masked_words,
    "soft labels": soft_labels("both"),
    "soft labels, rows": soft_labels("rows"),
    "soft labels, columns": soft_labels("columns"),
    "structure": structure,
}


def union(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """All ranks' vectors, ids and the scale, equal on all ranks."""
    generator = torch.Generator().manual_seed(rows)
    vectors = torch.randn(rows, 1 + TEXTS, DIM, generator=generator, dtype=torch.float64)
    ids = torch.randint(0, max(rows // 2, 1), (rows,), generator=generator)
    return vectors, ids, torch.tensor(9.0, dtype=torch.float64)


def errors(loss: Loss, sizes: tuple[int, ...], rank: int) -> tuple[float, float]:
    """Distance of value and gradients over ranks from those of one process."""
    vectors, ids, start = union(sum(sizes))
    whole, whole_scale = vectors.clone().requires_grad_(), start.clone().requires_grad_()
    expected = loss(whole, ids, whole_scale, False)
    expected.backward()

    own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    local, scale = vectors[own].clone().requires_grad_(), start.clone().requires_grad_()
    share = loss(local, ids[own], scale, True)
    share.backward()
    assert local.grad is not None
    assert whole.grad is not None
    value = float((sum_over_ranks(share) - expected.detach()).abs())
    gradient = (local.grad - whole.grad[own]).abs().max() if sizes[rank] else torch.zeros(())
    slopes = [torch.zeros_like(start) if leaf.grad is None else leaf.grad for leaf in (scale, whole_scale)]
    gradient = torch.maximum(gradient, (sum_over_ranks(slopes[0]) - slopes[1]).abs())
    return value, float(gradient)


def check_losses(rank: int, world: int) -> None:
    for name, loss in LOSSES.items():
        for sizes in SPLITS[world]:
            value, gradient = errors(loss, sizes, rank)
            assert value < 1e-12, (name, sizes)
            assert gradient < 1e-12, (name, sizes)


def check_negative_control(rank: int, world: int) -> None:
    """Counting the own rows only, the usual mistake, is seen by every loss that divides by them."""

    def own_rows(total: Tensor, rows: Tensor | int, gather: bool = True, group: object = None) -> Tensor:
        return share_of_mean(total, rows, False)

    for module in (distillation, tension_module, matching_module, relational_module):
        vars(module)["share_of_mean"] = own_rows
    for name in ("mse", "cosine", "tension", "matching", "masked words", "soft labels, rows"):
        assert max(errors(LOSSES[name], (3, 2), rank)) > 1e-3, name


def check_hits_of_blocks(rank: int, world: int) -> None:
    for sizes in SPLITS[world]:
        vectors, ids, scale = union(sum(sizes))
        rows = F.normalize(vectors, dim=2)
        own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        for groups in (None, ids):
            mine = None if groups is None else groups[own]
            got = global_info_nce(rows[own, 0], rows[own, 1], scale, ids=mine, block_rows=2)
            wanted = global_info_nce(rows[own, 0], rows[own, 1], scale, ids=mine, block_rows=0)
            assert [int(n) for n in got[1:]] == [int(n) for n in wanted[1:]], sizes
        got = global_one_to_k_info_nce(rows[own, 0], rows[own, 1:], scale, block_rows=2)
        wanted = global_one_to_k_info_nce(rows[own, 0], rows[own, 1:], scale, block_rows=0)
        assert [int(n) for n in got[1:]] == [int(n) for n in wanted[1:]], sizes


def check_weights_and_frozen_sides(rank: int, world: int) -> None:
    """Ranks weigh their shares differently, and y is trained on rank 0 only: as the plain way has it, no hanging."""
    vectors, ids, scale = union(9)
    own = slice(0, 4) if rank == 0 else slice(4, 9)
    for frozen_elsewhere in (False, True):
        slopes = []
        for block_rows in (0, 2):
            x, y = (F.normalize(vectors[own, i], dim=1).requires_grad_() for i in range(2))
            other = y.detach() if frozen_elsewhere and rank else y
            loss = global_info_nce(x, other, scale, ids=ids[own], block_rows=block_rows).loss * (rank + 0.5)
            loss.backward()
            assert x.grad is not None
            slopes.append((x.grad, torch.zeros_like(y) if y.grad is None else y.grad))
        for plain, tiles in zip(*slopes, strict=True):
            torch.testing.assert_close(tiles, plain, rtol=1e-10, atol=1e-12)


def check_choice_of_blocks(rank: int, world: int) -> None:
    """Ranks of very different sizes choose alike; otherwise they would wait for each other's collectives."""
    vars(tiled)["TILE_ABOVE"] = 20
    loss = contrast(True, "both")
    vectors, ids, scale = union(6)
    own = slice(0, 5) if rank == 0 else slice(5, 6)
    x, y = F.normalize(vectors[:, :2], dim=2).unbind(1)
    wanted = loss(vectors, ids, scale, False)
    share = global_info_nce(x[own], y[own], scale, ids=ids[own]).loss
    torch.testing.assert_close(sum_over_ranks(share), wanted, rtol=1e-12, atol=0)


def check_negative_control_of_blocks(rank: int, world: int) -> None:
    """Columns that know the own rank's rows only are seen."""
    exact = tiled._RunningStatistics.over_ranks
    vars(tiled)["_RunningStatistics"].over_ranks = lambda self, group: None
    assert max(errors(LOSSES["blocks"], (3, 2), rank)) > 1e-3
    vars(tiled)["_RunningStatistics"].over_ranks = exact
    assert max(errors(LOSSES["blocks"], (3, 2), rank)) < 1e-12


def check_collectives(rank: int, world: int) -> None:
    assert list(range(7))[every_nth()] == list(range(rank, 7, world))
    assert gather_sizes(torch.zeros(rank + 2, 3)) == list(range(2, world + 2))
    value = torch.tensor([[1.0], [rank]], requires_grad=True)
    largest = max_over_ranks(value.T)
    assert largest.tolist() == [[1.0, world - 1]]
    assert not largest.requires_grad
    assert value.tolist() == [[1.0], [rank]]  # the argument stays as it is
    share = share_of_mean(value.sum(), rank)
    assert float(share.detach()) == pytest.approx((1 + rank) / sum(range(world)))
    assert float(share_of_mean(value.sum(), rank + 1, gather=False).detach()) == 1


def check(rank: int, world: int, name: str, store: str) -> None:
    """One rank: joins the others and runs a check of this file."""
    with gloo_group(rank, world, store):
        globals()[name](rank, world)


@pytest.mark.parametrize("world", [2, 3])
def test_value_and_gradients_are_those_of_one_process(world: int, tmp_path: Path) -> None:
    start_ranks("check", world, ("check_losses", str(tmp_path / "store")), file=__file__)


def test_a_mean_over_own_rows_would_be_noticed(tmp_path: Path) -> None:
    start_ranks("check", 2, ("check_negative_control", str(tmp_path / "store")), file=__file__)


@pytest.mark.parametrize("name", ["hits_of_blocks", "weights_and_frozen_sides", "choice_of_blocks"])
def test_blocks_of_rows(name: str, tmp_path: Path) -> None:
    start_ranks("check", 2, (f"check_{name}", str(tmp_path / "store")), file=__file__)


def test_blocks_without_the_other_ranks_would_be_noticed(tmp_path: Path) -> None:
    start_ranks("check", 2, ("check_negative_control_of_blocks", str(tmp_path / "store")), file=__file__)


def test_sizes_maxima_and_shares(tmp_path: Path) -> None:
    start_ranks("check", 3, ("check_collectives", str(tmp_path / "store")), file=__file__)


def test_without_a_process_group_one_rank_is_the_world() -> None:
    rows = torch.ones(2, 3, requires_grad=True)
    assert gather_sizes(rows) == [2]
    assert [1, 2, 3][every_nth()] == [1, 2, 3]
    assert torch.equal(max_over_ranks(rows), rows)
    assert float(share_of_mean(rows.sum(), 2).detach()) == 3
    assert gather_module.share_of_mean is share_of_mean


if __name__ == RANK:
    function, values = call  # type: ignore[name-defined] # noqa: F821
    globals()[function](*values)
