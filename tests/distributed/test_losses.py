"""Every loss that gathers, over gloo ranks with uneven batches: value and gradients of one process over the union."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
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
)
from mclip_fairseq.losses import gather as gather_module
from mclip_fairseq.losses import matching as matching_module
from mclip_fairseq.losses import relational as relational_module
from mclip_fairseq.losses import tension as tension_module
from mclip_fairseq.losses.gather import every_nth
from tests.runs import RANK, start_ranks

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


def one_way(rows: Tensor, ids: Tensor, scale: Tensor, gather: bool) -> Tensor:
    x, y = F.normalize(rows[:, :2], dim=2).unbind(1)
    return global_info_nce(x, y, scale, ids=ids, direction="xy", gather=gather).loss


def one_to_k(rows: Tensor, ids: Tensor, scale: Tensor, gather: bool) -> Tensor:
    rows = F.normalize(rows, dim=2)
    return global_one_to_k_info_nce(rows[:, 0], rows[:, 1:], scale, gather=gather).loss


def several_positives(rows: Tensor, ids: Tensor, scale: Tensor, gather: bool) -> Tensor:
    x, y = F.normalize(rows[:, :2], dim=2).unbind(1)
    return global_info_nce(x, y, scale, ids=ids, gather=gather).loss


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
    "one direction": one_way,
    "one to K": one_to_k,
    "several positives": several_positives,
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
    torch.set_num_threads(1)
    patience = timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=patience)
    try:
        globals()[name](rank, world)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 3])
def test_value_and_gradients_are_those_of_one_process(world: int, tmp_path: Path) -> None:
    start_ranks("check", world, ("check_losses", str(tmp_path / "store")), file=__file__)


def test_a_mean_over_own_rows_would_be_noticed(tmp_path: Path) -> None:
    start_ranks("check", 2, ("check_negative_control", str(tmp_path / "store")), file=__file__)


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
