"""Contrastive Tension: two encoders learn to agree on the same sentence and to disagree on different ones."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from mclip_fairseq.losses.contrastive import REDUCTIONS, check_choice
from mclip_fairseq.losses.gather import share_of_mean


def contrastive_tension_loss(first: Tensor, second: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
    """Binary cross entropy of dot products (Contrastive Tension, Carlsson et al. 2021).

    The logit of pair i is f_i.g_i, of vectors that are neither normalised nor scaled. A batch holds groups of one
    positive (both encoders read the same sentence) and K negatives. The in-batch variant of sentence-transformers is
    `symmetric_info_nce` of normalised vectors with a learned scale that starts at 20.

    Args:
        first: (B, D), pooled vectors of the first encoder, any floating dtype; computed in at least float32.
        second: (B, D), of the second encoder.
        labels: (B,), 1 or True where both encoders read the same sentence, else 0 or False.
        reduction: over pairs: `mean` as the authors have it, or `sum` as sentence-transformers has it.

    Returns:
        0-d, float32 or float64. Zero for B = 0, with a graph.

    Raises:
        ValueError: shapes do not fit, or the reduction is unknown.
    """
    return global_contrastive_tension_loss(first, second, labels, reduction, gather=False)


def global_contrastive_tension_loss(
    first: Tensor,
    second: Tensor,
    labels: Tensor,
    reduction: str = "mean",
    *,
    gather: bool = True,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """This rank's share of `contrastive_tension_loss` over the pairs of all ranks; every rank must call it.

    Args:
        first: (b, D), pairs of this rank, possibly none.
        second: (b, D).
        labels: (b,).
        reduction: `mean` or `sum`, over the pairs of all ranks.
        gather: False leaves the other ranks out, as without a process group.
        group: process group; None is the default one.

    Returns:
        0-d, float32 or float64; the shares add up to the loss of the union.

    Raises:
        ValueError: as `contrastive_tension_loss`.
    """
    if first.dim() != 2 or first.shape != second.shape or labels.shape != first.shape[:1]:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (first, second, labels))
        raise ValueError(f"first, second and labels are {shapes}; give (B, D), (B, D) and (B,)")
    check_choice("reduction", reduction, REDUCTIONS)
    with torch.autocast(first.device.type, enabled=False):
        dtype = torch.promote_types(torch.promote_types(first.dtype, second.dtype), torch.float32)
        logits = (first.to(dtype) * second.to(dtype)).sum(dim=1)
        total = F.binary_cross_entropy_with_logits(logits, labels.to(dtype), reduction="sum")
        return total if reduction == "sum" else share_of_mean(total, len(first), gather, group)
