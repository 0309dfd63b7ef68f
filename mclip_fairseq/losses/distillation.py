"""Losses between a student's text vectors and those of its teacher: M-CLIP, AltCLIP and MLA's first stage."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from mclip_fairseq.losses.contrastive import check_choice, check_same_shape, global_info_nce
from mclip_fairseq.losses.gather import share_of_mean

KINDS = ("mse", "cosine", "contrastive")
DIRECTIONS = ("both", "released")


def distillation_loss(
    student: Tensor,
    teacher: Tensor,
    kind: str,
    scale: Tensor | float | None = None,
    direction: str = "both",
) -> Tensor:
    """Distance between a student's vectors and the teacher's vectors of the same texts.

    With n(v) = v / |v|, for rows i = 1..B of D dimensions:

    - `mse`: mean over i and d of (s_id - t_id)^2, not normalised (Multilingual-CLIP, Carlsson et al. 2022; NLT of
      MLA, Zhang et al. 2022). With unit vectors it is |s - t|^2 / D.
    - `cosine`: mean over i of 1 - n(s_i).n(t_i).
    - `contrastive`: InfoNCE of scale * n(t) n(s)^T with the diagonal as positives (AltCLIP, Chen et al. 2023).

    Args:
        student: (B, D), any floating dtype; computed in at least float32, also under autocast.
        teacher: (B, D). Gradients flow into it if it requires them.
        kind: `mse`, `cosine` or `contrastive`.
        scale: multiplies the cosine of `contrastive`, which needs it (AltCLIP learns exp(theta), theta = 1.5 at the
            start); the other kinds do not use it.
        direction: of `contrastive`: `both` is the mean of teacher -> student and student -> teacher; `released`
            is teacher -> student alone, the one cross entropy that AltCLIP's released code computes.

    Returns:
        0-d, float32 or float64. Zero for B = 0, with a graph.

    Raises:
        ValueError: shapes do not fit, the kind or direction is unknown, or `contrastive` has no scale.
    """
    return global_distillation_loss(student, teacher, kind, scale, direction, gather=False)


def global_distillation_loss(
    student: Tensor,
    teacher: Tensor,
    kind: str,
    scale: Tensor | float | None = None,
    direction: str = "both",
    *,
    gather: bool = True,
    group: dist.ProcessGroup | None = None,
    block_rows: int | None = None,
) -> Tensor:
    """This rank's share of `distillation_loss` over the rows of all ranks.

    The shares of all ranks add up to the loss of the union, and the gradients of all ranks to its gradient. Every
    rank must call it and run backward through it, even with zero rows.

    Args:
        student: (b, D), rows of this rank; b may differ over ranks.
        teacher: (b, D).
        kind: as in `distillation_loss`.
        scale: as in `distillation_loss`; the same on all ranks.
        direction: as in `distillation_loss`.
        gather: False leaves the other ranks out, as without a process group.
        group: process group; None is the default one.
        block_rows: of `contrastive`, as in `global_info_nce`.

    Returns:
        0-d, float32 or float64.

    Raises:
        ValueError: as `distillation_loss`.
    """
    check_same_shape(student, teacher, "student and teacher")
    check_choice("kind", kind, KINDS)
    check_choice("direction", direction, DIRECTIONS)
    with torch.autocast(student.device.type, enabled=False):
        dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
        student, teacher = student.to(dtype), teacher.to(dtype)
        if kind == "contrastive":
            if scale is None:
                raise ValueError("the contrastive kind has no scale; give the number that multiplies the cosine")
            # Teachers are the rows: the released code softmaxes over students.
            x, y = F.normalize(teacher, dim=1), F.normalize(student, dim=1)
            way = "both" if direction == "both" else "xy"
            contrast: dict[str, Any] = {"direction": way, "gather": gather, "group": group, "block_rows": block_rows}
            return global_info_nce(x, y, scale, **contrast).loss
        if kind == "mse":
            total = F.mse_loss(student, teacher, reduction="sum") / student.shape[1]
        else:
            total = (1 - F.cosine_similarity(student, teacher, dim=1)).sum()
        return share_of_mean(total, len(student), gather, group)
