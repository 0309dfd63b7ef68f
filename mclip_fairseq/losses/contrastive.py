"""InfoNCE between two sets of L2-normalised rows, on one process or over all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from mclip_fairseq.losses.gather import gather_offset, gather_rows, gather_sizes
from mclip_fairseq.losses.tiled import Layout, choose_block_rows, tiled_sums

REDUCTIONS = ("mean", "sum")
DIRECTIONS = ("both", "xy")


class ContrastiveOutput(NamedTuple):
    """Result of `global_info_nce` for the rows of one rank.

    Attributes:
        loss: 0-d, this rank's share; the shares of all ranks add up to the loss of the union.
        rows: number of pairs of this rank.
        hits_xy: 0-d int64, rows of x whose best-scoring y is a positive. A tie with a negative is a miss.
        hits_yx: 0-d int64, rows of y whose best-scoring x is a positive.
    """

    loss: Tensor
    rows: int
    hits_xy: Tensor
    hits_yx: Tensor


def symmetric_info_nce(
    x: Tensor,
    y: Tensor,
    scale: Tensor | float,
    positives: Tensor | None = None,
    reduction: str = "mean",
    direction: str = "both",
) -> Tensor:
    """Mean of the InfoNCE losses x -> y and y -> x (van den Oord et al. 2018; CLIP, Radford et al. 2021).

    A row's loss is -log softmax(scale * cosines) at its positives, and the loss of a direction is the mean over rows.

    Args:
        x: (B, D), L2-normalised, any floating dtype. Logits are computed in at least float32, also under autocast.
        y: (B, D), L2-normalised.
        scale: number, or tensor with one element, that multiplies the cosine (1 / temperature).
        positives: (B, B) bool, `positives[i, j]` where `y[j]` is a positive of `x[i]`; None is the diagonal.
        reduction: over the positives of a row: `mean`, or `sum` as the released mCLIP fine-tuning does.
        direction: `both`, or `xy` for x -> y alone, as the released AltCLIP trains.

    Returns:
        0-d, float32 or float64. Zero for B = 0, with a graph.

    Raises:
        ValueError: shapes do not fit, the reduction or direction is unknown, or (on CPU only, elsewhere asking would
            stall the device) a row or a column has no positive. On other devices such a row gives nan with `mean`
            and adds nothing with `sum`.
    """
    _check(x, y, reduction, direction)
    if positives is not None:
        _check_positives(positives, len(x))
    with torch.autocast(x.device.type, enabled=False):
        x, y, scale = widen(x, y, scale)
        logits = scale * x @ y.T
        loss_xy, _ = sum_of_rows(logits, 0, positives, reduction)
        if direction == "xy":
            return loss_xy / max(len(x), 1)
        loss_yx, _ = sum_of_rows(logits.T, 0, None if positives is None else positives.T, reduction)
        return (loss_xy + loss_yx) / (2 * max(len(x), 1))


def global_info_nce(
    x: Tensor,
    y: Tensor,
    scale: Tensor | float,
    *,
    ids: Tensor | None = None,
    reduction: str = "mean",
    direction: str = "both",
    gather: bool = True,
    group: dist.ProcessGroup | None = None,
    block_rows: int | None = None,
) -> ContrastiveOutput:
    """This rank's share of `symmetric_info_nce` over the rows of all ranks.

    The sum of the shares over ranks is the loss of the union, and the sum over ranks of the gradients of x, y, the
    scale and everything before them is its gradient. No rank holds more than (b, B) logits for each direction, and
    large batches are computed in blocks of rows (`tiled_sums`), so that memory is linear in the batch. Every rank must
    call this and run backward through it, even with zero rows.

    Args:
        x: (b, D), L2-normalised rows of this rank; b may differ over ranks.
        y: (b, D), L2-normalised.
        scale: number, or tensor with one element, that multiplies the cosine; the same on all ranks.
        ids: (b,) integers: pairs of equal id, also of different ranks, are positives of each other. None: each pair
            is its own.
        reduction: over the positives of a row, `mean` or `sum`.
        direction: of the loss, `both` or `xy`; the hits are counted both ways.
        gather: False leaves the other ranks out, as without a process group.
        group: process group; None is the default one.
        block_rows: rows of logits that exist at once; 0 for all of them. None lets the size decide: all up to 4,096
            rows of one rank. The same on all ranks.

    Returns:
        the loss (zero with a graph where no rank has a row), the number of own rows, and the hits both ways.

    Raises:
        ValueError: shapes do not fit, or the reduction or direction is unknown.
    """
    _check(x, y, reduction, direction)
    if ids is not None and ids.shape != x.shape[:1]:
        raise ValueError(f"ids has shape {tuple(ids.shape)}; give one id for each of the {len(x)} rows")
    with torch.autocast(x.device.type, enabled=False):
        x, y, scale = widen(x, y, scale)
        sizes = gather_sizes(x, group) if gather else [len(x)]
        rows = max(sum(sizes), 1)
        block_rows = choose_block_rows(block_rows, sizes, sum(sizes))
        if block_rows:
            # Without ids, a pair of the same place on two ranks must not count as one.
            first = 0 if ids is not None or not gather else gather_offset(sizes, group)
            own_ids = torch.arange(first, first + len(x), device=x.device) if ids is None else ids
            layout = Layout(sizes, block_rows, reduction, gather, group, one_positive=ids is None)
            loss_xy, loss_yx, hits_xy, hits_yx = tiled_sums(x, y, scale, own_ids, own_ids, layout)
        else:
            all_xy, all_ids, offset = torch.cat([x, y], dim=1), ids, 0
            if gather:
                all_xy, offset = gather_rows(all_xy, group, sizes)  # one collective for both, in both passes
                all_ids = None if ids is None else gather_rows(ids, group, sizes)[0]
            all_x, all_y = all_xy.tensor_split(2, dim=1)
            positives = None if ids is None or all_ids is None else ids[:, None] == all_ids
            loss_xy, hits_xy = sum_of_rows(scale * x @ all_y.T, offset, positives, reduction)
            loss_yx, hits_yx = sum_of_rows(scale * y @ all_x.T, offset, positives, reduction)
        loss = loss_xy / rows if direction == "xy" else (loss_xy + loss_yx) / (2 * rows)
    return ContrastiveOutput(loss, len(x), hits_xy, hits_yx)


def sum_of_rows(logits: Tensor, offset: int, positives: Tensor | None, reduction: str) -> tuple[Tensor, Tensor]:
    """Summed losses of (b, B) logits, and how many rows score a positive above every negative.

    `positives` is a (b, B) mask, or None where row i has the one positive `offset + i`.
    """
    if not logits.numel():
        return logits.sum(), logits.new_zeros((), dtype=torch.long)
    scores = logits.detach()
    if positives is None:
        target = torch.arange(offset, offset + len(logits), device=logits.device)
        rivals = scores >= scores.gather(1, target[:, None])
        hits = rivals.sum(1) == 1  # none but the positive itself
    else:
        target = positives.to(logits.dtype)
        if reduction == "mean":
            target = target / target.sum(1, keepdim=True)
        best = scores.masked_fill(~positives, -torch.inf).amax(1, keepdim=True)
        hits = ~((scores >= best) & ~positives).any(1)
    return F.cross_entropy(logits, target, reduction="sum"), hits.sum()


def widen(x: Tensor, y: Tensor, scale: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs in one dtype of at least float32; the graph of the scale is kept."""
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    return x.to(dtype), y.to(dtype), like(x, scale, dtype)


def like(x: Tensor, value: Tensor | float, dtype: torch.dtype) -> Tensor:
    """A number, or a tensor with its graph, on the device of `x`; a number is filled in there, without a copy."""
    return value.to(x.device, dtype) if isinstance(value, Tensor) else x.new_full((), value, dtype=dtype)


def check_same_shape(x: Tensor, y: Tensor, names: str) -> None:
    """Refuse anything but two matrices (B, D); `names` is what the caller calls them."""
    if x.dim() != 2 or x.shape != y.shape:
        raise ValueError(f"{names} are {tuple(x.shape)} and {tuple(y.shape)}; give two matrices of one shape (B, D)")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a value that is not one of the choices of an argument."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; choose one of {', '.join(choices)}")


def _check(x: Tensor, y: Tensor, reduction: str, direction: str) -> None:
    check_same_shape(x, y, "x and y")
    check_choice("reduction", reduction, REDUCTIONS)
    check_choice("direction", direction, DIRECTIONS)


def _check_positives(positives: Tensor, rows: int) -> None:
    if positives.dtype != torch.bool or positives.shape != (rows, rows):
        raise ValueError(f"positives is {positives.dtype} {tuple(positives.shape)}; give torch.bool ({rows}, {rows})")
    if positives.device.type == "cpu" and not (positives.any(0).all() and positives.any(1).all()):
        raise ValueError("positives has a row or a column without a positive; mark at least one in each")
