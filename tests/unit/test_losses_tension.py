from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mclip_fairseq.losses import contrastive_tension_loss, global_contrastive_tension_loss, symmetric_info_nce
from tests.parity import Fixture, gradients, load_fixture, same


def slow(first: Tensor, second: Tensor, labels: Tensor, reduction: str) -> Tensor:
    """The definition, one number at a time."""
    losses = []
    for f, g, label in zip(first, second, labels, strict=True):
        probability = 1 / (1 + torch.exp(-sum(a * b for a, b in zip(f, g, strict=True))))
        losses.append(-torch.log(probability) if label else -torch.log(1 - probability))
    return torch.stack(losses).mean() if reduction == "mean" else torch.stack(losses).sum()


def test_value_by_hand() -> None:
    first = torch.tensor([[math.log(3), 0.0], [1.0, 1.0]])
    second = torch.tensor([[1.0, 7.0], [1.0, -1.0]])
    # dot products ln 3 and 0: probabilities 3/4 and 1/2; the first pair is positive, the second negative
    losses = math.log(4 / 3), math.log(2)
    for labels in (torch.tensor([1.0, 0.0]), torch.tensor([1, 0]), torch.tensor([True, False])):
        assert contrastive_tension_loss(first, second, labels).item() == pytest.approx(sum(losses) / 2)
        assert contrastive_tension_loss(first, second, labels, "sum").item() == pytest.approx(sum(losses))
    turned = contrastive_tension_loss(first, second, torch.tensor([0, 1]))
    assert turned.item() == pytest.approx((math.log(4) + math.log(2)) / 2)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_value_and_gradients_equal_the_definition(reduction: str) -> None:
    first, second = (torch.randn(8, 3, dtype=torch.float64).requires_grad_() for _ in range(2))
    labels = torch.tensor([1, 0, 0, 0, 1, 0, 0, 0])
    loss, expected = contrastive_tension_loss(first, second, labels, reduction), slow(first, second, labels, reduction)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for got, wanted in zip(gradients(loss, first, second), gradients(expected, first, second), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)


def test_large_dot_products_stay_finite_in_half_precision() -> None:
    first = torch.full((2, 400), 30.0, dtype=torch.float16)  # the dot product, 360,000, has no float16
    loss = contrastive_tension_loss(first, first, torch.tensor([1, 0]))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(180_000)


def test_no_pairs_give_a_zero_with_a_graph() -> None:
    first = torch.randn(3, 2).requires_grad_()
    for reduction in ("mean", "sum"):
        loss = global_contrastive_tension_loss(first[:0], first[:0], torch.zeros(0), reduction)
        assert loss.item() == 0
        loss.backward()


def test_unsuitable_arguments_are_refused() -> None:
    first = torch.randn(3, 2)
    with pytest.raises(ValueError, match=r"\(B, D\), \(B, D\) and \(B,\)"):
        contrastive_tension_loss(first, first, torch.zeros(2))
    with pytest.raises(ValueError, match="choose one of mean, sum"):
        contrastive_tension_loss(first, first, torch.zeros(3), "none")


def pooled(fixture: Fixture, tables: tuple[Tensor, Tensor]) -> list[Tensor]:
    """Masked means of the stand-in encoders' rows."""
    sides = []
    for number, table in enumerate(tables, 1):
        mask = fixture[f"mask_{number}"][..., None].float()
        sides.append((table[fixture[f"ids_{number}"].long()] * mask).sum(1) / mask.sum(1))
    return sides


@pytest.mark.parametrize(("system", "reduction"), [("authors", "mean"), ("st", "sum")])
def test_released(shared_dir: Path, system: str, reduction: str) -> None:
    fixture = load_fixture(shared_dir, "altclip/ct_losses.npz")
    tables = (fixture["table_1"].clone().requires_grad_(), fixture["table_2"].clone().requires_grad_())
    first, second = pooled(fixture, tables)
    labels = fixture["labels"]
    loss = contrastive_tension_loss(first, second, labels, reduction)
    same(loss, fixture["authors_loss" if system == "authors" else "st_loss_sum"])
    by_first, by_second, *by_tables = gradients(loss, first, second, *tables)
    same(by_first, fixture[f"{system}_grad_emb_1"])
    same(by_second, fixture[f"{system}_grad_emb_2"])
    for number, got in enumerate(by_tables, 1):
        same(got, fixture[f"{system}_grad_table_{number}"])
    if system == "authors":
        same(first, fixture["authors_emb_1"])
        for name, rows in (("positive", labels == 1), ("negative", labels == 0)):
            same(
                contrastive_tension_loss(first[rows], second[rows], labels[rows], "sum"), fixture[f"authors_{name}_sum"]
            )


@pytest.mark.parametrize("suffix", ["", "_theta4.8"])
def test_released_in_batch_negatives(shared_dir: Path, suffix: str) -> None:
    fixture = load_fixture(shared_dir, "altclip/ct_losses.npz")
    first, second = (fixture[f"inbatch_emb_{number}"].clone().requires_grad_() for number in (1, 2))
    theta = (torch.tensor(4.8) if suffix else fixture["inbatch_init_theta"].float()).requires_grad_()
    loss = symmetric_info_nce(F.normalize(first, dim=1), F.normalize(second, dim=1), theta.exp())
    same(loss, fixture[f"inbatch_loss{suffix}"])
    by_first, by_second, by_theta = gradients(loss, first, second, theta)
    same(by_first, fixture[f"inbatch_grad_emb_1{suffix}"])
    same(by_second, fixture[f"inbatch_grad_emb_2{suffix}"])
    same(by_theta, fixture[f"inbatch_grad_theta{suffix}"])
