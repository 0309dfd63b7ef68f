from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mclip_fairseq.losses import global_info_nce, symmetric_info_nce


def unit_rows(rows: int, dim: int = 5, dtype: torch.dtype = torch.float64) -> Tensor:
    return F.normalize(torch.randn(rows, dim, dtype=dtype), dim=1).requires_grad_()


def slow_one_way(x: Tensor, y: Tensor, scale: Tensor, positives: Tensor, reduction: str) -> Tensor:
    """The definition, one number at a time."""
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(x)):
        scores = [scale * sum(x[i, d] * y[j, d] for d in range(x.shape[1])) for j in range(len(y))]
        partition = torch.log(torch.stack([torch.exp(score) for score in scores]).sum())
        losses = [partition - scores[j] for j in range(len(y)) if positives[i, j]]
        total = total + sum(losses) / (len(losses) if reduction == "mean" else 1)
    return total / len(x)


def slow_info_nce(x: Tensor, y: Tensor, scale: Tensor, positives: Tensor | None, reduction: str) -> Tensor:
    positives = torch.eye(len(x), dtype=torch.bool) if positives is None else positives
    forward = slow_one_way(x, y, scale, positives, reduction)
    return (forward + slow_one_way(y, x, scale, positives.T, reduction)) / 2


MASKS: dict[str, Tensor | None] = {
    "diagonal": None,
    "groups": torch.tensor([0, 1, 0, 2, 1, 0])[:, None] == torch.tensor([0, 1, 0, 2, 1, 0]),
    "lopsided": torch.eye(6).bool() | (torch.arange(36).view(6, 6) % 7 == 3),  # not symmetric
}


def test_two_orthogonal_pairs() -> None:
    eye = torch.eye(2)
    # each row: scores ln 3 and 0, so the softmax gives the pair 3/4
    assert symmetric_info_nce(eye, eye, math.log(3)).item() == pytest.approx(math.log(4 / 3))


def test_two_captions_of_one_image() -> None:
    x, y = torch.eye(3), torch.eye(3)
    positives = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]]).bool()
    # scores of a row: ln 2 once, 0 twice; the partition function is 4
    pair, other = math.log(4 / 2), math.log(4)
    mean, total = (2 * (pair + other) / 2 + pair) / 3, (2 * (pair + other) + pair) / 3
    assert symmetric_info_nce(x, y, math.log(2), positives).item() == pytest.approx(mean)
    assert symmetric_info_nce(x, y, math.log(2), positives, reduction="sum").item() == pytest.approx(total)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("mask", MASKS)
def test_value_and_gradients_equal_the_definition(mask: str, reduction: str) -> None:
    x, y = unit_rows(6), unit_rows(6)
    scale = torch.tensor(7.0, dtype=torch.float64, requires_grad=True)
    loss = symmetric_info_nce(x, y, scale, MASKS[mask], reduction)
    expected = slow_info_nce(x, y, scale, MASKS[mask], reduction)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for got, wanted in zip(
        torch.autograd.grad(loss, (x, y, scale)), torch.autograd.grad(expected, (x, y, scale)), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("mask", MASKS)
def test_one_direction_equals_the_definition(mask: str, reduction: str) -> None:
    x, y = unit_rows(6), unit_rows(6)
    scale = torch.tensor(7.0, dtype=torch.float64, requires_grad=True)
    given = MASKS[mask]
    expected = slow_one_way(x, y, scale, torch.eye(6).bool() if given is None else given, reduction)
    loss = symmetric_info_nce(x, y, scale, given, reduction, "xy")
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for got, wanted in zip(
        torch.autograd.grad(loss, (x, y, scale)), torch.autograd.grad(expected, (x, y, scale)), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)
    if mask != "lopsided":  # which no ids describe
        ids = None if given is None else torch.tensor([0, 1, 0, 2, 1, 0])
        share = global_info_nce(x, y, scale, ids=ids, reduction=reduction, direction="xy")
        torch.testing.assert_close(share.loss, expected, rtol=1e-12, atol=0)
        both = global_info_nce(x, y, scale, ids=ids, reduction=reduction)
        assert [int(n) for n in share[1:]] == [int(n) for n in both[1:]]  # hits are counted both ways


def test_identity_mask_is_the_diagonal() -> None:
    x, y = unit_rows(4), unit_rows(4)
    for reduction in ("mean", "sum"):
        masked = symmetric_info_nce(x, y, 10.0, torch.eye(4).bool(), reduction)
        torch.testing.assert_close(masked, symmetric_info_nce(x, y, 10.0), rtol=1e-12, atol=0)


def test_single_pair_costs_nothing() -> None:
    x, y = unit_rows(1), unit_rows(1)
    assert symmetric_info_nce(x, y, 100.0).item() == 0
    assert [int(n) for n in global_info_nce(x, y, 100.0)[1:]] == [1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(dtype: torch.dtype) -> None:
    x, y = unit_rows(8, 64).detach().to(dtype), unit_rows(8, 64).detach().to(dtype)
    loss = symmetric_info_nce(x, y, torch.tensor(100.0, dtype=dtype))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), symmetric_info_nce(x.double(), y.double(), 100.0), rtol=1e-5, atol=0)


def test_autocast_does_not_lower_the_precision() -> None:
    x, y = unit_rows(8, 64, torch.float32), unit_rows(8, 64, torch.float32)
    plain = symmetric_info_nce(x, y, 100.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert (x @ y.T).dtype == torch.bfloat16  # autocast is at work
        assert torch.equal(symmetric_info_nce(x, y, 100.0), plain)
        torch.testing.assert_close(global_info_nce(x, y, 100.0).loss, plain, rtol=1e-6, atol=0)


def test_scale_may_have_a_dimension_and_half_precision() -> None:
    x, y = unit_rows(4, dtype=torch.float32), unit_rows(4, dtype=torch.float32)
    scale = torch.tensor([8.0], dtype=torch.float16, requires_grad=True)
    loss = symmetric_info_nce(x, y, scale)
    assert loss.shape == ()
    assert torch.autograd.grad(loss, scale)[0].shape == (1,)
    assert torch.equal(loss, symmetric_info_nce(x, y, 8.0))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("ids", [None, torch.tensor([5, 2, 5, 9, 2, 5])])
def test_global_loss_of_one_process(ids: Tensor | None, reduction: str) -> None:
    x, y = unit_rows(6), unit_rows(6)
    scale = torch.tensor(7.0, dtype=torch.float64, requires_grad=True)
    positives = None if ids is None else ids[:, None] == ids
    out = global_info_nce(x, y, scale, ids=ids, reduction=reduction)
    assert out.rows == 6
    expected = symmetric_info_nce(x, y, scale, positives, reduction)
    torch.testing.assert_close(out.loss, expected, rtol=1e-12, atol=0)
    for got, wanted in zip(
        torch.autograd.grad(out.loss, (x, y, scale)), torch.autograd.grad(expected, (x, y, scale)), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)


def test_hits() -> None:
    x = torch.eye(3)
    y = torch.tensor([[0.8, 0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 1.0, 0.0]])
    # x -> y: row 0 finds y0, row 1 finds y2, row 2 sees three zeros, a tie. y -> x: rows 0 and 1 are right.
    out = global_info_nce(x, y, 10.0)
    assert (int(out.hits_xy), int(out.hits_yx)) == (1, 2)
    # with pairs 1 and 2 of one image, row 1's y2 counts, row 2 still ties with y0, and y2's x1 counts
    out = global_info_nce(x, y, 10.0, ids=torch.tensor([4, 7, 7]))
    assert (int(out.hits_xy), int(out.hits_yx)) == (2, 3)
    assert not out.hits_xy.requires_grad
    assert out.hits_xy.shape == ()


def test_ties_with_positives_are_hits_and_with_negatives_are_not() -> None:
    x = y = torch.ones(3, 1)
    assert int(global_info_nce(x, y, 1.0).hits_xy) == 0
    assert int(global_info_nce(x, y, 1.0, ids=torch.tensor([1, 1, 1])).hits_xy) == 3


def test_no_rows_give_a_zero_with_a_graph() -> None:
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    for ids in (None, torch.zeros(0, dtype=torch.long)):
        x, y = unit_rows(4), unit_rows(4)
        out = global_info_nce(x[:0], y[:0], scale, ids=ids)
        assert (out.loss.item(), out.rows, out.hits_xy.item(), out.hits_yx.item()) == (0, 0, 0, 0)
        out.loss.backward()
        assert x.grad is not None
        assert y.grad is not None
        assert x.grad.abs().sum() + y.grad.abs().sum() == 0
    assert scale.grad == 0
    x = unit_rows(3)
    symmetric_info_nce(x[:0], x[:0], scale).backward()
    assert x.grad is not None
    symmetric_info_nce(x[:0], x[:0], scale, torch.zeros(0, 0).bool()).backward()


def test_unsuitable_arguments_are_refused() -> None:
    x, y, mask = unit_rows(3), unit_rows(3), torch.eye(3).bool()
    with pytest.raises(ValueError, match="one shape"):
        symmetric_info_nce(x, y[:2], 1.0)
    with pytest.raises(ValueError, match="one shape"):
        global_info_nce(x[0], y[0], 1.0)
    with pytest.raises(ValueError, match="choose one of mean, sum"):
        symmetric_info_nce(x, y, 1.0, reduction="none")
    with pytest.raises(ValueError, match="choose one of both, xy"):
        symmetric_info_nce(x, y, 1.0, direction="yx")
    with pytest.raises(ValueError, match=r"torch.bool \(3, 3\)"):
        symmetric_info_nce(x, y, 1.0, mask[:2])
    with pytest.raises(ValueError, match=r"torch.bool \(3, 3\)"):
        symmetric_info_nce(x, y, 1.0, mask.float())
    with pytest.raises(ValueError, match="one id for each of the 3 rows"):
        global_info_nce(x, y, 1.0, ids=torch.zeros(2, dtype=torch.long))
    for lonely in (mask & (torch.arange(3) > 0), torch.tensor([[1, 0, 0]] * 3).bool()):
        with pytest.raises(ValueError, match="without a positive"):
            symmetric_info_nce(x, y, 1.0, lonely)
