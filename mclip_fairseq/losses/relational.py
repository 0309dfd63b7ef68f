"""Losses between the relations of a student's vectors and those of its teacher's: soft labels, and structure."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from mclip_fairseq.losses.contrastive import check_choice, check_same_shape, widen
from mclip_fairseq.losses.gather import every_nth, gather_rows, gather_sizes, share_of_mean

DIRECTIONS = ("both", "rows", "columns")


def soft_label_loss(
    student: Tensor, teacher: Tensor, bank: Tensor, scale: Tensor | float, direction: str = "both"
) -> Tensor:
    """Divergence of how student and teacher see a bank of images (C2KD, Rouditchenko et al. 2023).

    With P = scale * t V^T and Q = scale * s V^T, (B, M):

    - `rows`: mean over texts of KL(softmax(P) || softmax(Q)), the softmax over images,
    - `columns`: mean over images of KL(softmax(P^T) || softmax(Q^T)), the softmax over texts,
    - `both`: the sum of the two.

    Args:
        student: (B, D), L2-normalised, any floating dtype; computed in at least float32, also under autocast.
        teacher: (B, D), L2-normalised, of the same texts; gets no gradient.
        bank: (M, D), L2-normalised image features; gets no gradient.
        scale: multiplies the cosine (1 / temperature; C2KD has 10).
        direction: `both`, `rows` or `columns`.

    Returns:
        0-d, float32 or float64. Zero for B = 0 or M = 0, with a graph.

    Raises:
        ValueError: shapes do not fit, or the direction is unknown.
    """
    return global_soft_label_loss(student, teacher, bank, scale, direction, gather=False)


def global_soft_label_loss(
    student: Tensor,
    teacher: Tensor,
    bank: Tensor,
    scale: Tensor | float,
    direction: str = "both",
    *,
    gather: bool = True,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """This rank's share of `soft_label_loss` over the texts of all ranks.

    The shares add up to the loss of the union, the gradients of all ranks to its gradient. Every rank must call it
    and run backward through it, even with zero rows.

    Args:
        student: (b, D), texts of this rank; b may differ over ranks.
        teacher: (b, D).
        bank: (M, D), the same on all ranks. For the images of the batch, gather them first.
        scale: as in `soft_label_loss`; the same on all ranks.
        direction: as in `soft_label_loss`.
        gather: False leaves the other ranks out, as without a process group.
        group: process group; None is the default one.

    Returns:
        0-d, float32 or float64.

    Raises:
        ValueError: as `soft_label_loss`.
    """
    check_same_shape(student, teacher, "student and teacher")
    if bank.dim() != 2 or bank.shape[1] != student.shape[1]:
        raise ValueError(f"bank is {tuple(bank.shape)}; give (images, {student.shape[1]})")
    check_choice("direction", direction, DIRECTIONS)
    with torch.autocast(student.device.type, enabled=False):
        student, teacher, scale = widen(student, teacher.detach(), scale)
        bank = bank.detach().to(student.dtype)
        by_image = by_text = student.sum() * 0.0
        if direction != "columns":
            total = _divergence(scale * student @ bank.T, scale * teacher @ bank.T)
            by_image = share_of_mean(total, len(student), gather, group)
        if direction != "rows":
            # A column needs the texts of all ranks, so the ranks share the images between them.
            if gather:
                sizes = gather_sizes(student, group)
                student, teacher = gather_rows(student, group, sizes)[0], gather_rows(teacher, group, sizes)[0]
            mine = bank[every_nth(group)] if gather else bank
            by_text = _divergence(scale * mine @ student.T, scale * mine @ teacher.T) / max(len(bank), 1)
        return by_image + by_text


def structure_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over pairs i < j of (s_i.s_j - t_i.t_j)^2: L_str of METAL (arXiv 2601.10096).

    Args:
        student: (B, D), L2-normalised, any floating dtype; computed in at least float32, also under autocast.
        teacher: (B, D), L2-normalised, of the same texts; gets no gradient. D may differ from the student's.

    Returns:
        0-d, float32 or float64. Zero for B < 2, with a graph.

    Raises:
        ValueError: the numbers of rows differ.
    """
    return global_structure_loss(student, teacher, gather=False)


def global_structure_loss(
    student: Tensor, teacher: Tensor, *, gather: bool = True, group: dist.ProcessGroup | None = None
) -> Tensor:
    """This rank's share of `structure_loss` over the pairs of all ranks' rows; every rank must call it.

    Args:
        student: (b, D), texts of this rank; b may differ over ranks.
        teacher: (b, E).
        gather: False leaves the other ranks out, as without a process group.
        group: process group; None is the default one.

    Returns:
        0-d, float32 or float64; the shares add up to the loss of the union.

    Raises:
        ValueError: as `structure_loss`.
    """
    if student.dim() != 2 or teacher.dim() != 2 or len(student) != len(teacher):
        raise ValueError(f"student and teacher are {tuple(student.shape)} and {tuple(teacher.shape)}; give equal rows")
    with torch.autocast(student.device.type, enabled=False):
        student, teacher, _ = widen(student, teacher.detach(), 1.0)
        all_student, all_teacher, offset = student, teacher, 0
        if gather:
            sizes = gather_sizes(student, group)
            all_student, offset = gather_rows(student, group, sizes)
            all_teacher, _ = gather_rows(teacher, group, sizes)
        errors = (student @ all_student.T - teacher @ all_teacher.T).square()
        # Each pair is met twice, as (i, j) and (j, i); a row is not a pair with itself.
        itself = torch.arange(offset, offset + len(student), device=student.device)
        errors = errors.scatter(1, itself[:, None], 0.0)
        return errors.sum() / max(len(all_student) * (len(all_student) - 1), 1)


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Summed KL(softmax(teacher) || softmax(student)) of the rows of two matrices of logits; none into the teacher."""
    target = teacher.detach().log_softmax(dim=1)
    return F.kl_div(student.log_softmax(dim=1), target, log_target=True, reduction="sum")
