from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mclip_fairseq.losses import soft_label_loss, structure_loss
from tests.parity import gradients


def unit_rows(rows: int, dim: int = 4) -> Tensor:
    return F.normalize(torch.randn(rows, dim, dtype=torch.float64), dim=1).requires_grad_()


def softmax(scores: list[Tensor]) -> list[Tensor]:
    total = torch.stack(scores).exp().sum()
    return [score.exp() / total for score in scores]


def slow_soft_labels(student: Tensor, teacher: Tensor, bank: Tensor, scale: Tensor, direction: str) -> Tensor:
    """The definition, one number at a time; the teacher is a constant."""
    teacher = teacher.detach()

    def divergence(queries: Tensor | None, items: Tensor | None) -> Tensor:
        losses = []
        for query in range(len(bank) if queries is None else len(queries)):
            sides = []
            for texts in (teacher, student):
                one = bank[query] if queries is None else texts[query]
                many = texts if items is None else items
                sides.append(softmax([(scale if texts is student else scale.detach()) * (one @ item) for item in many]))
            losses.append(sum(p * (p.log() - q.log()) for p, q in zip(*sides, strict=True)))
        return torch.stack([torch.as_tensor(loss) for loss in losses]).mean()

    rows, columns = divergence(student, bank), divergence(None, None)
    return {"rows": rows, "columns": columns, "both": rows + columns}[direction]


def test_soft_labels_by_hand() -> None:
    bank, teacher, student = torch.eye(2), torch.eye(2), torch.tensor([[0.6, 0.8], [0.0, 1.0]])
    scale = 5 * math.log(2)
    # the teacher sees both images as 32 to 1; the student's first text sees them as 2^3 to 2^4
    p = (32 / 33, 1 / 33)
    rows = (p[0] * math.log(p[0] * 3) + p[1] * math.log(p[1] * 3 / 2)) / 2
    assert soft_label_loss(student, teacher, bank, scale, "rows").item() == pytest.approx(rows, rel=1e-5)
    # image 0 sees the student's texts as 2^3 to 1, image 1 as 2^4 to 2^5
    first = p[0] * math.log(p[0] * 9 / 8) + p[1] * math.log(p[1] * 9)
    second = p[1] * math.log(p[1] * 3) + p[0] * math.log(p[0] * 3 / 2)
    columns = soft_label_loss(student, teacher, bank, scale, "columns").item()
    assert columns == pytest.approx((first + second) / 2, rel=1e-5)
    assert soft_label_loss(student, teacher, bank, scale).item() == pytest.approx(rows + columns, rel=1e-5)


@pytest.mark.parametrize("direction", ["both", "rows", "columns"])
def test_soft_labels_equal_the_definition(direction: str) -> None:
    student, teacher, bank = unit_rows(3), unit_rows(3), unit_rows(5)
    scale = torch.tensor(6.0, dtype=torch.float64, requires_grad=True)
    loss = soft_label_loss(student, teacher, bank, scale, direction)
    expected = slow_soft_labels(student, teacher, bank, scale, direction)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    leaves = (student, scale)
    for got, wanted in zip(gradients(loss, *leaves), gradients(expected, *leaves), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)
    assert all(not grad.any() for grad in gradients(loss, teacher, bank))


def test_soft_labels_are_zero_for_the_teacher_itself_and_for_nobody_else() -> None:
    teacher, bank = unit_rows(4), unit_rows(6)
    assert abs(soft_label_loss(teacher, teacher, bank, 20.0).item()) < 1e-12
    assert soft_label_loss(teacher.flip(0), teacher, bank, 20.0).item() > 1e-2


def test_structure_by_hand() -> None:
    student, teacher = torch.eye(3), torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    # the student's cosines are 0; the teacher's are 0.6, 0 and 0.8
    assert structure_loss(student, teacher).item() == pytest.approx((0.36 + 0 + 0.64) / 3)


def test_structure_equals_the_definition_and_sees_no_rotation() -> None:
    student, teacher = unit_rows(5), unit_rows(5, 3)
    pairs = [(i, j) for i in range(5) for j in range(i)]
    errors = [(student[i] @ student[j] - teacher[i].detach() @ teacher[j].detach()) ** 2 for i, j in pairs]
    expected, loss = torch.stack(errors).mean(), structure_loss(student, teacher)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(loss, student)[0], gradients(expected, student)[0])
    assert not gradients(loss, teacher)[0].any()
    turn, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))
    assert structure_loss(student @ turn, student).item() < 1e-24
    assert structure_loss(student.flip(0), student).item() > 1e-3


def test_half_precision_is_widened_also_under_autocast() -> None:
    student, teacher, bank = (unit_rows(6, 32).detach().to(torch.bfloat16) for _ in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        losses = soft_label_loss(student, teacher, bank, 50.0), structure_loss(student, teacher)
    wide = student.double(), teacher.double(), bank.double()
    for loss, exact in zip(losses, (soft_label_loss(*wide, 50.0), structure_loss(*wide[:2])), strict=True):
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss.double(), exact, rtol=1e-4, atol=0)


def test_nothing_to_compare_gives_a_zero_with_a_graph() -> None:
    student, teacher, bank = unit_rows(3), unit_rows(3), unit_rows(2)
    for loss in (
        soft_label_loss(student[:0], teacher[:0], bank, 5.0),
        soft_label_loss(student, teacher, bank[:0], 5.0),
        structure_loss(student[:0], teacher[:0]),
        structure_loss(student[:1], teacher[:1]),
    ):
        assert loss.item() == 0
        loss.backward()
    assert student.grad is not None
    assert not student.grad.any()


def test_unsuitable_arguments_are_refused() -> None:
    student, teacher, bank = unit_rows(3), unit_rows(3), unit_rows(2)
    with pytest.raises(ValueError, match="one shape"):
        soft_label_loss(student, teacher[:2], bank, 1.0)
    with pytest.raises(ValueError, match=r"give \(images, 4\)"):
        soft_label_loss(student, teacher, bank[:, :2], 1.0)
    with pytest.raises(ValueError, match="choose one of both, rows, columns"):
        soft_label_loss(student, teacher, bank, 1.0, "all")
    with pytest.raises(ValueError, match="give equal rows"):
        structure_loss(student, teacher[:2])
