from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mclip_fairseq.losses import distillation_loss, global_distillation_loss, symmetric_info_nce
from tests.parity import gradients, load_fixture, same


def vectors(rows: int = 5, dim: int = 4, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return tuple(torch.randn(rows, dim, dtype=dtype).requires_grad_() for _ in range(2))  # type: ignore[return-value]


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return sum(x * y for x, y in zip(a, b, strict=True)) / (sum(x * x for x in a) * sum(y * y for y in b)) ** 0.5


def slow(student: Tensor, teacher: Tensor, kind: str, scale: Tensor, direction: str) -> Tensor:
    """The definition, one number at a time."""
    rows = range(len(student))
    if kind == "mse":
        errors = [(s - t) ** 2 for i in rows for s, t in zip(student[i], teacher[i], strict=True)]
        return torch.stack(errors).mean()
    if kind == "cosine":
        return torch.stack([1 - cosine(student[i], teacher[i]) for i in rows]).mean()
    logits = [[scale * cosine(teacher[i], student[j]) for j in rows] for i in rows]
    one = [torch.stack(logits[i]).exp().sum().log() - logits[i][i] for i in rows]
    other = [torch.stack([logits[i][j] for i in rows]).exp().sum().log() - logits[j][j] for j in rows]
    forward = torch.stack(one).mean()
    return forward if direction == "released" else (forward + torch.stack(other).mean()) / 2


def test_values_by_hand() -> None:
    student, teacher = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    # squared errors 1, 1, 0, 1; the cosines are 0 and 1
    assert distillation_loss(student, teacher, "mse").item() == pytest.approx(3 / 4)
    assert distillation_loss(student, teacher, "cosine").item() == pytest.approx(1 / 2)
    # teacher -> student: both rows score 0 and ln 3, so the pairs have 1/4 and 3/4
    forward = (math.log(4) + math.log(4 / 3)) / 2
    released = distillation_loss(student, teacher, "contrastive", math.log(3), "released")
    assert released.item() == pytest.approx(forward)
    # student -> teacher: two equal teachers, one half each
    both = distillation_loss(student, teacher, "contrastive", math.log(3))
    assert both.item() == pytest.approx((forward + math.log(2)) / 2)


@pytest.mark.parametrize(
    ("kind", "direction"), [("mse", "both"), ("cosine", "both"), ("contrastive", "both"), ("contrastive", "released")]
)
def test_value_and_gradients_equal_the_definition(kind: str, direction: str) -> None:
    student, teacher = vectors()
    scale = torch.tensor(6.0, dtype=torch.float64, requires_grad=True)
    loss = distillation_loss(student, teacher, kind, scale, direction)
    expected = slow(student, teacher, kind, scale, direction)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    leaves = (student, teacher, scale)
    for got, wanted in zip(gradients(loss, *leaves), gradients(expected, *leaves), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)


def test_directions_differ_and_teacher_comes_first() -> None:
    student, teacher = vectors()
    losses = {
        direction: distillation_loss(student, teacher, "contrastive", 6.0, direction)
        for direction in ("both", "released")
    }
    assert abs(losses["both"] - losses["released"]) > 1e-3
    swapped = distillation_loss(teacher, student, "contrastive", 6.0, "released")
    assert abs(swapped - losses["released"]) > 1e-3  # what exchanged arguments would give
    torch.testing.assert_close(swapped + losses["released"], 2 * losses["both"])


@pytest.mark.parametrize("kind", ["mse", "cosine", "contrastive"])
def test_half_precision_is_widened_also_under_autocast(kind: str) -> None:
    student, teacher = (tensor.detach().to(torch.bfloat16) for tensor in vectors(8, 64))
    with torch.autocast("cpu", torch.bfloat16):
        loss = distillation_loss(student, teacher, kind, 20.0)
    assert loss.dtype == torch.float32
    exact = distillation_loss(student.double(), teacher.double(), kind, 20.0)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", ["mse", "cosine", "contrastive"])
def test_no_rows_give_a_zero_with_a_graph(kind: str) -> None:
    student, teacher = vectors()
    loss = global_distillation_loss(student[:0], teacher[:0], kind, 5.0)
    assert loss.item() == 0
    loss.backward()
    assert student.grad is not None
    assert student.grad.abs().sum() == 0


def test_unsuitable_arguments_are_refused() -> None:
    student, teacher = vectors()
    with pytest.raises(ValueError, match="one shape"):
        distillation_loss(student, teacher[:2], "mse")
    with pytest.raises(ValueError, match="choose one of mse, cosine, contrastive"):
        distillation_loss(student, teacher, "l1")
    with pytest.raises(ValueError, match="choose one of both, released"):
        distillation_loss(student, teacher, "contrastive", 1.0, "xy")
    with pytest.raises(ValueError, match="has no scale"):
        distillation_loss(student, teacher, "contrastive")


def test_released_altclip(shared_dir: Path) -> None:
    fixture = load_fixture(shared_dir, "altclip/altclip_losses.npz")
    teacher = fixture["teacher"]
    for kind in ("mse", "cosine"):
        student = fixture["student"].clone().requires_grad_()
        loss = distillation_loss(student, teacher, kind)
        same(loss, fixture[f"loss_{kind}"])
        same(gradients(loss, student)[0], fixture[f"grad_student_{kind}"])
    for prefix, direction in (("", "released"), ("own_symmetric_", "both")):
        for i, start in enumerate(fixture["cl_theta"]):
            student, theta = fixture["student"].clone().requires_grad_(), start.float().requires_grad_()
            loss = distillation_loss(student, teacher, "contrastive", theta.exp(), direction)
            same(loss, fixture[f"{prefix}loss_cl"][i])
            by_student, by_theta = gradients(loss, student, theta)
            same(by_student, fixture[f"{prefix}grad_student_cl"][i])
            same(by_theta, fixture[f"{prefix}grad_theta_cl"][i])


def test_released_altclip_image_text_stage(shared_dir: Path) -> None:
    """Text -> image alone, as the released code; both ways, as transformers."""
    losses = load_fixture(shared_dir, "altclip/altclip_losses.npz")
    scale = load_fixture(shared_dir, "altclip/altclip_outputs.npz")["logit_scale"]
    for suffix, start in (("", scale), ("_theta5.2", torch.tensor(5.2))):
        theta = start.float().requires_grad_()
        text, image = (F.normalize(losses[f"stage2_{side}_embeds"], dim=1) for side in ("text", "image"))
        loss = symmetric_info_nce(text, image, theta.exp(), direction="xy")
        same(loss, losses[f"stage2_loss{suffix}"])
        same(gradients(loss, theta)[0], losses[f"stage2_grad_theta{suffix}"])
        if not suffix:
            loss = symmetric_info_nce(text, image, theta.exp())
            same(loss, losses["stage2_symmetric_loss"])
            same(gradients(loss, theta)[0], losses["stage2_symmetric_grad_theta"])


def test_released_m_clip(shared_dir: Path) -> None:
    fixture = load_fixture(shared_dir, "altclip/mclip_outputs.npz")
    student = fixture["mse_student"].clone().requires_grad_()
    loss = distillation_loss(student, fixture["mse_teacher"], "mse")
    same(loss, fixture["mse_loss"])
    same(gradients(loss, student)[0], fixture["mse_grad_student"])
    # Keras logs the cosine with a positive sign.
    same(1 - distillation_loss(student, fixture["mse_teacher"], "cosine"), fixture["logged_mse_mae_cosine"][2])


def test_released_mla(shared_dir: Path) -> None:
    fixture = load_fixture(shared_dir, "mla/mla_losses.npz")
    english, image = fixture["src"], fixture["img"]
    for name, eps in (("mse", 0.0), ("nce", 1e-12), ("itm_nce", 1e-6), ("itm_mse", 0.0), ("finetune", 1e-6)):
        target, pixels = fixture["trg"].clone().requires_grad_(), image.clone().requires_grad_()
        other = english if name in ("mse", "nce") else pixels
        if name.endswith("mse"):
            loss = distillation_loss(target, other, "mse")
        else:
            loss = symmetric_info_nce(F.normalize(other, dim=1, eps=eps), F.normalize(target, dim=1, eps=eps), 100.0)
        same(loss, fixture[f"{name}_loss"])
        by_target, by_image = gradients(loss, target, pixels)
        same(by_target, fixture[f"{name}_grad_trg"])
        if name == "finetune":
            same(by_image, fixture["finetune_grad_img"])


def test_released_mla_sums(shared_dir: Path) -> None:
    """Losses that the released code adds up, and the states of layers."""
    fixture = load_fixture(shared_dir, "mla/mla_losses.npz")
    for name, parts in (("mse_itm_nce", ("mse", "itm_nce")), ("all_four", ("mse", "nce", "itm_nce", "itm_mse"))):
        target = fixture["trg"].clone().requires_grad_()
        terms = {
            "mse": distillation_loss(target, fixture["src"], "mse"),
            "nce": distillation_loss(target, fixture["src"], "contrastive", 100.0),
            "itm_nce": symmetric_info_nce(
                F.normalize(fixture["img"], dim=1, eps=1e-6), F.normalize(target, dim=1, eps=1e-6), 100.0
            ),
            "itm_mse": distillation_loss(target, fixture["img"], "mse"),
        }
        loss = torch.stack([terms[part] for part in parts]).sum()
        same(loss, fixture[f"{name}_loss"])
        same(gradients(loss, target)[0], fixture[f"{name}_grad_trg"])
    numbers = [key.removeprefix("kd_src_") for key in fixture if key.startswith("kd_src_")]
    states = [fixture[f"kd_trg_{number}"].clone().requires_grad_() for number in numbers]
    pairs = zip(states, numbers, strict=True)
    loss = torch.stack([distillation_loss(state, fixture[f"kd_src_{number}"], "mse") for state, number in pairs]).sum()
    same(loss, fixture["kd_layers_loss"])
    for number, gradient in zip(numbers, gradients(loss, *states), strict=True):
        same(gradient, fixture[f"kd_layers_grad_trg_{number}"])
