"""InfoNCE in both directions of which only a few rows of logits exist at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from mclip_fairseq.losses.gather import gather_rows, max_over_ranks, own_rows_of_sum, several_ranks, sum_over_ranks

# Logits of one block: 64 MiB in float32, of which two or three copies live at a time.
BLOCK_ELEMENTS = 2**24
# Beyond this many logits of a rank (4,096 rows of one rank), blocks are the default.
TILE_ABOVE = 2**24


class DirectionSums(NamedTuple):
    """Summed losses of this rank's rows of x and of y, and how many of them score a positive above every negative.

    Attributes:
        xy: 0-d, sum over own rows of x.
        yx: 0-d, sum over own rows of y.
        hits_xy: 0-d int64.
        hits_yx: 0-d int64.
    """

    xy: Tensor
    yx: Tensor
    hits_xy: Tensor
    hits_yx: Tensor


class Layout(NamedTuple):
    """How the rows of all ranks are computed.

    Attributes:
        y_sizes: rows of y of each rank.
        block_rows: rows of x whose logits exist at once.
        reduction: over the positives of a row, `mean` or `sum`.
        gather: whether other ranks take part.
        group: process group; None is the default one.
        one_positive: every row of x has one; a GPU need not be asked, and waited for, how many there are.
    """

    y_sizes: list[int]
    block_rows: int
    reduction: str
    gather: bool
    group: dist.ProcessGroup | None
    one_positive: bool


def choose_block_rows(block_rows: int | None, x_sizes: list[int], all_y: int) -> int:
    """How many rows of logits exist at once, 0 for all of them; the same answer on all ranks.

    Args:
        block_rows: the caller's choice; None lets the size decide.
        x_sizes: rows of x of each rank.
        all_y: rows of y of all ranks.

    Returns:
        `block_rows` if it is given; else 0 up to `TILE_ABOVE` logits of the rank with most rows, and beyond it as
        many rows as `BLOCK_ELEMENTS` logits allow.
    """
    if block_rows is not None:
        return block_rows
    return max(1, BLOCK_ELEMENTS // all_y) if max(x_sizes) * all_y > TILE_ABOVE else 0


def tiled_sums(x: Tensor, y: Tensor, scale: Tensor, x_ids: Tensor, y_ids: Tensor, layout: Layout) -> DirectionSums:
    """Losses and hits of both directions, row block by row block.

    The logits of x's own rows with the y of all ranks are computed once in forward and once more in backward, and
    serve both directions: a row's softmax is complete in its block, a column's is collected over blocks and ranks.
    That is one matrix product forward and three backward, where the plain way needs two and four, and only y is sent
    to other ranks. Memory is a few blocks and a few vectors beside features and their gradients.

    Args:
        x: (b, D), own rows, float32 or float64.
        y: (c, D), own rows; c may differ from b.
        scale: 0-d, multiplies the cosine.
        x_ids: (b,) int64; rows of x and y with equal ids, also of different ranks, are positives.
        y_ids: (c,) int64.
        layout: rows of the ranks, and options.

    Returns:
        the sums, with exact gradients: over ranks they add up to those of the union.
    """
    return DirectionSums(*_TiledSums.apply(x, y, scale, x_ids, y_ids, layout))


class _Positives:
    """Index pairs (row, column) of equal id, block by block of the rows: no mask of all pairs exists."""

    def __init__(self, row_ids: Tensor, column_ids: Tensor, layout: Layout) -> None:
        ids, self.order = column_ids.sort()
        # In this order, all columns of one id are neighbours.
        self.start = torch.searchsorted(ids, row_ids)
        self.count = torch.searchsorted(ids, row_ids, right=True) - self.start
        starts = range(0, len(row_ids), layout.block_rows)
        self.blocks = [slice(i, min(i + layout.block_rows, len(row_ids))) for i in starts]
        if layout.one_positive or not self.blocks:
            self.sizes = [block.stop - block.start for block in self.blocks]
        else:  # read at once: a GPU would otherwise be waited for in every block
            self.sizes = torch.stack([self.count[block].sum() for block in self.blocks]).tolist()

    def __iter__(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Each block, and the rows (from its start) and columns of its positive pairs."""
        for block, size in zip(self.blocks, self.sizes, strict=True):
            count = self.count[block]
            row = torch.arange(len(count), device=count.device).repeat_interleave(count, output_size=size)
            place = torch.arange(size, device=count.device) - (count.cumsum(0) - count)[row]
            yield block, row, self.order[self.start[block][row] + place]


class _RunningStatistics:
    """Statistics of some rows or columns over the blocks so far, in float64.

    The partition function is kept as a largest logit and a sum relative to it: as one float32 of, say, 80, its
    rounding would be 4e-6 of the loss.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.top, self.best, self.rival = torch.full((3, size), -torch.inf, dtype=torch.float64, device=device)
        self.total, self.positive, self.count = torch.zeros((3, size), dtype=torch.float64, device=device)

    def add(self, negatives: Tensor, dim: int, index: Tensor, scores: Tensor, part: slice) -> None:
        """Take in one block.

        Args:
            negatives: logits, -inf at the positive pairs.
            dim: 1 where the block holds whole rows, `part` of them; 0 where it holds a piece of every column.
            index: row or column of each positive pair, counted from the start of `part`.
            scores: logits of the positive pairs.
            part: which entries the block belongs to.
        """
        rival, scores = negatives.amax(dim).double(), scores.double()
        best = torch.full_like(rival, -torch.inf).scatter_reduce_(0, index, scores, "amax")
        top = torch.maximum(self.top[part], torch.maximum(rival, best))
        total = (negatives - top.to(negatives.dtype).unsqueeze(dim)).exp_().sum(dim).double()
        total.index_add_(0, index, (scores - top[index]).exp())
        self.total[part] = self.total[part] * (self.top[part] - top).exp() + total
        self.top[part] = top
        self.best[part] = torch.maximum(self.best[part], best)
        self.rival[part] = torch.maximum(self.rival[part], rival)
        self.positive[part] = self.positive[part].index_add(0, index, scores)
        self.count[part] = self.count[part].index_add(0, index, torch.ones_like(scores))

    def over_ranks(self, group: dist.ProcessGroup | None) -> None:
        """Combine the statistics of the same columns over ranks, each of which covers its own rows."""
        top, self.best, self.rival = max_over_ranks(torch.stack([self.top, self.best, self.rival]), group)
        # On a rank without rows the largest logit is -inf: its sum, 0, must not become 0 * nan.
        shift = (self.top - top).masked_fill(self.top == -torch.inf, -torch.inf).exp()
        sums = torch.stack([self.total * shift, self.positive, self.count])
        self.total, self.positive, self.count = sum_over_ranks(sums, group)
        self.top = top

    def loss(self, part: slice, reduction: str) -> Tensor:
        """Sum of the losses of some entries: lse - positive / count, or count * lse - positive."""
        lse, positive = self.top[part] + self.total[part].log(), self.positive[part]
        return (lse - positive / self.count[part] if reduction == "mean" else self.count[part] * lse - positive).sum()

    def hits(self, part: slice) -> Tensor:
        """How many entries have a positive above all negatives."""
        return (self.best[part] > self.rival[part]).sum()

    def slopes(self, weight: Tensor, reduction: str) -> tuple[Tensor, Tensor]:
        """Slope of the weighted losses by exp(logit - top) and, less, by the logit of each positive."""
        if reduction == "mean":
            return weight / self.total, weight / self.count
        return weight * self.count / self.total, weight


class _TiledSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, scale: Tensor, x_ids: Tensor, y_ids: Tensor, layout: Layout
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ctx.layout, ctx.y_needs_grad, ctx.own = layout, ctx.needs_input_grad[1], slice(0, len(y))
        if layout.gather:
            rows = len(y)
            y, offset = gather_rows(y, layout.group, layout.y_sizes)
            y_ids, _ = gather_rows(y_ids, layout.group, layout.y_sizes)
            ctx.own = slice(offset, offset + rows)
            if several_ranks(layout.group):
                # Backward sums y's gradient over ranks: all of them take part if one needs it.
                flag = x.new_full((), float(ctx.y_needs_grad))
                ctx.y_needs_grad = bool(max_over_ranks(flag, layout.group))
        ctx.positives = _Positives(x_ids, y_ids, layout)
        ctx.rows, ctx.columns = _RunningStatistics(len(x), x.device), _RunningStatistics(len(y), x.device)
        for block, row, column in ctx.positives:
            logits = (x[block] * scale) @ y.T
            scores = logits[row, column]
            logits[row, column] = logits.new_full((), -torch.inf)
            ctx.rows.add(logits, 1, row, scores, block)
            ctx.columns.add(logits, 0, column, scores, slice(None))
        if layout.gather:
            ctx.columns.over_ranks(layout.group)
        ctx.save_for_backward(x, y, scale)
        sums = ctx.rows.loss(slice(None), layout.reduction), ctx.columns.loss(ctx.own, layout.reduction)
        hits = ctx.rows.hits(slice(None)), ctx.columns.hits(ctx.own)
        ctx.mark_non_differentiable(*hits)
        return sums[0].to(x.dtype), sums[1].to(x.dtype), *hits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_xy: Tensor, grad_yx: Tensor, *hits: Tensor) -> tuple[Tensor | None, ...]:
        x, y, scale = ctx.saved_tensors
        layout, dtype = ctx.layout, x.dtype
        # A column's loss belongs to the rank that owns it, whose weight for it may differ from ours.
        column_weight = torch.zeros_like(ctx.columns.top)
        column_weight[ctx.own] = grad_yx.double()
        if layout.gather:
            column_weight = sum_over_ranks(column_weight, layout.group)
        row_soft, row_target = ctx.rows.slopes(grad_xy.double().expand(len(x)), layout.reduction)
        column_soft, column_target = ctx.columns.slopes(column_weight, layout.reduction)
        row_top, row_soft = ctx.rows.top.to(dtype)[:, None], row_soft.to(dtype)[:, None]
        column_top, column_soft = ctx.columns.top.to(dtype), column_soft.to(dtype)
        grad_x, grad_scale = torch.empty_like(x), torch.zeros_like(scale)
        grad_y = torch.zeros_like(y) if ctx.y_needs_grad else None
        with torch.autocast(x.device.type, enabled=False):
            for block, row, column in ctx.positives:
                scaled = x[block] * scale
                logits = scaled @ y.T
                slope = (logits - row_top[block]).exp_().mul_(row_soft[block])
                slope += logits.sub_(column_top).exp_().mul_(column_soft)
                slope[row, column] -= (row_target[block][row] + column_target[column]).to(dtype)
                by_cosine = slope @ y
                grad_scale += (x[block] * by_cosine).sum()
                grad_x[block] = by_cosine * scale
                if grad_y is not None:
                    grad_y.addmm_(slope.T, scaled)
        if grad_y is not None and layout.gather:
            grad_y = own_rows_of_sum(grad_y, layout.y_sizes, layout.group)
        return grad_x, grad_y if ctx.needs_input_grad[1] else None, grad_scale, None, None, None
