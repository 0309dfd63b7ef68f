"""The contrast in blocks of rows against the plain one: values, gradients, hits, memory, and when it is chosen."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mclip_fairseq.losses import ContrastiveOutput, contrastive, global_info_nce, global_one_to_k_info_nce, tiled
from tests.parity import gradients

IDS = {"pairs": None, "groups": torch.arange(40) % 17, "one image": torch.zeros(40, dtype=torch.long)}


def pairs(rows: int = 40, dtype: torch.dtype = torch.float64, noise: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs that find each other in part, and a scale."""
    x = torch.randn(rows, 16, dtype=torch.float64)
    y = F.normalize(x + noise * torch.randn(rows, 16, dtype=torch.float64), dim=1)
    scale = torch.tensor(12.0, dtype=torch.float64)
    x, y, scale = (tensor.to(dtype).requires_grad_() for tensor in (F.normalize(x, dim=1), y, scale))
    return x, y, scale


def assert_same(got: ContrastiveOutput, wanted: ContrastiveOutput, leaves: tuple[Tensor, ...], rtol: float) -> None:
    torch.testing.assert_close(got.loss, wanted.loss, rtol=rtol, atol=0)
    assert [int(n) for n in got[1:]] == [int(n) for n in wanted[1:]]
    for one, two in zip(gradients(3 * got.loss, *leaves), gradients(3 * wanted.loss, *leaves), strict=True):
        assert one.dtype == two.dtype
        torch.testing.assert_close(one, two, rtol=0, atol=rtol * float(two.abs().max()))


@pytest.mark.parametrize("direction", ["both", "xy"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("ids", IDS)
def test_equals_the_plain_contrast(ids: str, reduction: str, direction: str) -> None:
    leaves = pairs()
    options: dict[str, Any] = {"ids": IDS[ids], "reduction": reduction, "direction": direction}
    plain = global_info_nce(*leaves, **options, block_rows=0)
    for block_rows in (1, 7, 40, 1000):
        assert_same(global_info_nce(*leaves, **options, block_rows=block_rows), plain, leaves, 1e-12)
    if ids == "pairs":
        assert 0 < int(plain.hits_xy) < 40


@pytest.mark.parametrize("divisor", [None, 0, 2.5])
def test_equals_the_plain_one_to_k_contrast(divisor: float | None) -> None:
    image, _, scale = pairs(10)
    text = F.normalize(image.detach()[:, None] + torch.randn(10, 3, 16, dtype=torch.float64), dim=2).requires_grad_()
    leaves = (image, text, scale)
    plain = global_one_to_k_info_nce(*leaves, divisor, block_rows=0)
    for block_rows in (1, 4, 30):
        tiles = global_one_to_k_info_nce(*leaves, divisor, block_rows=block_rows)
        assert_same(tiles, plain, leaves, 1e-12)


def test_float32_is_as_exact_as_promised() -> None:
    """1e-6 of the float64 value and of its largest gradient entry, where one float32 of a partition function is not."""
    x, y, _ = pairs(600, noise=2.0)
    narrow = [leaf.detach().float().requires_grad_() for leaf in (x, y, torch.tensor(90.0))]
    wide = [leaf.detach().double().requires_grad_() for leaf in narrow]
    exact = global_info_nce(*wide, block_rows=0)
    got = global_info_nce(*narrow, block_rows=7)
    assert got.loss.dtype == torch.float32
    assert exact.loss > 1
    torch.testing.assert_close(got.loss.double(), exact.loss, rtol=1e-6, atol=0)
    for one, two in zip(gradients(got.loss, *narrow), gradients(exact.loss, *wide), strict=True):
        torch.testing.assert_close(one.double(), two, rtol=0, atol=2e-6 * float(two.abs().max()))


def test_ties_with_negatives_are_misses() -> None:
    x = torch.ones(3, 1)
    assert int(global_info_nce(x, x, 1.0, block_rows=2).hits_xy) == 0
    assert int(global_info_nce(x, x, 1.0, ids=torch.tensor([1, 1, 1]), block_rows=2).hits_yx) == 3
    x, y = torch.eye(3), torch.tensor([[0.8, 0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 1.0, 0.0]])
    out = global_info_nce(x, y, 10.0, block_rows=2)
    assert (int(out.hits_xy), int(out.hits_yx)) == (1, 2)  # as tests/unit/test_losses_contrastive.py has it


def test_far_apart_logits_neither_overflow_nor_vanish() -> None:
    x = torch.tensor([[1.0], [1.0], [-1.0]], requires_grad=True)
    y = torch.tensor([[1.0], [-1.0], [1.0]], requires_grad=True)
    for scale in (1e-3, 300.0, 3000.0):
        got, wanted = (global_info_nce(x, y, scale, block_rows=rows) for rows in (1, 0))
        assert got.loss.isfinite()
        assert_same(got, wanted, (x, y), 1e-6)


def test_overflown_features_are_not_hidden() -> None:
    x, y, scale = pairs(6, torch.float32)
    broken = x.detach().clone()
    broken[2, 1] = torch.nan
    assert global_info_nce(broken, y, scale, block_rows=2).loss.isnan()


def test_a_frozen_side_gets_no_gradient_and_saves_a_product() -> None:
    x, y, scale = pairs()
    out = global_info_nce(x, y.detach(), 12.0, block_rows=8)
    wanted = gradients(global_info_nce(x, y, scale, block_rows=0).loss, x)[0]
    torch.testing.assert_close(gradients(out.loss, x)[0], wanted)
    with torch.no_grad():
        assert not global_info_nce(x, y, scale, block_rows=8).loss.requires_grad


def test_autocast_does_not_lower_the_precision() -> None:
    x, y, scale = pairs(dtype=torch.float32)
    plain = global_info_nce(x, y, scale, block_rows=8)
    with torch.autocast("cpu", torch.bfloat16):
        got = global_info_nce(x, y, scale, block_rows=8)
        inside = torch.autograd.grad(got.loss, (x, y))
    assert torch.equal(got.loss, plain.loss)
    for one, two in zip(inside, gradients(plain.loss, x, y), strict=True):
        assert torch.equal(one, two)


def test_no_rows_give_a_zero_with_a_graph() -> None:
    x, y, scale = pairs()
    out = global_info_nce(x[:0], y[:0], scale, block_rows=4)
    assert (out.loss.item(), out.rows, int(out.hits_xy), int(out.hits_yx)) == (0, 0, 0, 0)
    out.loss.backward()
    assert x.grad is not None
    assert not x.grad.any()


def test_blocks_are_the_default_beyond_a_size_only(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []

    def recorded(*arguments: Any) -> tiled.DirectionSums:
        used.append(arguments[-1].block_rows)
        return tiled.tiled_sums(*arguments)

    monkeypatch.setattr(contrastive, "tiled_sums", recorded)
    monkeypatch.setattr(tiled, "TILE_ABOVE", 30 * 30)
    monkeypatch.setattr(tiled, "BLOCK_ELEMENTS", 100)
    x, y, scale = pairs()
    for rows, block_rows in itertools.product((30, 31, 40), (None, 0, 5)):
        global_info_nce(x[:rows], y[:rows], scale, block_rows=block_rows)
    assert used == [5, 3, 5, 2, 5]  # 30 rows on request alone; 31 and 40 by themselves, in blocks of 100 logits
    small = [global_info_nce(x[:30], y[:30], scale, block_rows=rows).loss for rows in (None, 0)]
    assert torch.equal(*small)
    # The rank with most rows decides for all.
    assert tiled.choose_block_rows(None, [2, 29], 31) == 0
    assert tiled.choose_block_rows(None, [1, 30], 31) == 3


def test_no_tensor_is_larger_than_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Watches every result of every operation, forward and backward."""
    largest = [0]

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                if isinstance(tensor, Tensor):
                    largest[0] = max(largest[0], tensor.numel())
            return out

    x, y, scale = pairs(300)
    ids = torch.arange(300) // 2
    for block_rows, limit in ((5, 300 * 16), (0, 300 * 300)):
        largest[0] = 0
        with Sizes():
            out = global_info_nce(x, y, scale, ids=ids, block_rows=block_rows)
            out.loss.backward()
        assert largest[0] == limit  # the features themselves, and all logits of the plain way
