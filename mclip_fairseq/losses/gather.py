"""Rows and sums over all ranks, with exact gradients; without a process group, one rank is the world."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class _GatherRows(torch.autograd.Function):
    """All ranks' rows in rank order. Backward sums the gradients of all ranks and keeps the own rows."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, sizes: list[int], group: dist.ProcessGroup | None) -> Tensor:
        # Collectives want equal shapes: rows of padding are sent along and dropped by their number, not their value.
        missing = max(sizes) - len(tensor)
        padded = F.pad(tensor, [0] * (2 * tensor.dim() - 1) + [missing]).contiguous()
        ctx.sizes, ctx.group = sizes, group
        together = padded.new_empty((len(sizes), *padded.shape))
        collective("all_gather")(together.flatten(0, 1), padded, group=group)
        if not missing_anywhere(sizes):
            return together.flatten(0, 1)
        return torch.cat([part[:size] for part, size in zip(together, sizes, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        # The sum over many ranks is done in at least float32.
        wide = torch.promote_types(grad.dtype, torch.float32)
        total = grad.to(wide, copy=True, memory_format=torch.contiguous_format)
        return own_rows_of_sum(total, ctx.sizes, ctx.group).to(grad.dtype), None, None


def missing_anywhere(sizes: list[int]) -> bool:
    """Whether some rank has fewer rows than another."""
    return min(sizes) != max(sizes)


def scatters(total: Tensor, group: dist.ProcessGroup | None) -> bool:
    """Whether each rank can receive its part of a sum alone, which sends half as much as receiving all of it."""
    return not total.is_cuda or dist.get_backend(group) == "nccl"


def collective(name: str) -> Callable[..., Any]:
    """`all_gather` or `reduce_scatter` of one tensor, whose name torch changed in version 2.13."""
    earlier = {"all_gather": "all_gather_into_tensor", "reduce_scatter": "reduce_scatter_tensor"}[name]
    function: Callable[..., Any] = getattr(dist, f"{name}_single", None) or getattr(dist, earlier)
    return function


def gather_sizes(rows: Tensor, group: dist.ProcessGroup | None = None) -> list[int]:
    """How many rows each rank holds, in rank order; every rank of the group must call it.

    Args:
        rows: (b, ...), the rows of this rank.
        group: process group; None is the default one.

    Returns:
        one number for each rank; `[b]` without an initialised process group.
    """
    if not several_ranks(group):
        return [len(rows)]
    size = torch.full((1,), len(rows), device=rows.device)
    counts = size.new_empty(dist.get_world_size(group))
    collective("all_gather")(counts, size, group=group)
    return counts.tolist()


def gather_offset(sizes: list[int], group: dist.ProcessGroup | None = None) -> int:
    """Position of this rank's first row among those of all ranks; `sizes` as `gather_sizes` returns it."""
    # The rank in the group: device indices repeat over machines.
    return sum(sizes[: dist.get_rank(group)]) if several_ranks(group) else 0


def gather_rows(
    tensor: Tensor, group: dist.ProcessGroup | None = None, sizes: list[int] | None = None
) -> tuple[Tensor, int]:
    """Concatenate the rows of all ranks.

    Every rank of the group must call it, and every rank must run backward through it if one does. Ranks may hold
    different numbers of rows, or none.

    Args:
        tensor: (rows, ...), on the device that the process group's backend serves; all but the first size, and the
            dtype, are the same on all ranks. Floating tensors carry gradients, others do not.
        group: process group; None is the default one.
        sizes: what `gather_sizes` returned for these rows; None asks for it.

    Returns:
        (all rows, ...) in rank order, and the position of this rank's first row in it. The gradient of `tensor` is
        the sum of what all ranks' losses say about it. Without an initialised process group: `(tensor, 0)`.
    """
    if not several_ranks(group):
        return tensor, 0
    if sizes is None:
        sizes = gather_sizes(tensor, group)
    return _GatherRows.apply(tensor, sizes, group), gather_offset(sizes, group)


def own_rows_of_sum(rows: Tensor, sizes: list[int], group: dist.ProcessGroup | None = None) -> Tensor:
    """Sum what all ranks hold for the rows of all ranks, and keep this rank's rows; without gradient.

    Args:
        rows: (all rows, ...), contiguous; may be overwritten.
        sizes: rows of each rank, as `gather_sizes` returns them.
        group: process group; None is the default one.

    Returns:
        (own rows, ...); `rows` without an initialised process group.
    """
    if not several_ranks(group):
        return rows
    if scatters(rows, group) and not missing_anywhere(sizes):
        own = rows.new_empty((sizes[0], *rows.shape[1:]))
        collective("reduce_scatter")(own, rows, group=group)
        return own
    dist.all_reduce(rows, group=group)
    offset = gather_offset(sizes, group)
    return rows[offset : offset + sizes[dist.get_rank(group)]]


def sum_over_ranks(value: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Sum a tensor of equal shape over all ranks, without gradient.

    Args:
        value: any shape, on the device that the process group's backend serves.
        group: process group; None is the default one.

    Returns:
        the sum, a new tensor; `value` detached without an initialised process group.
    """
    return _reduced(value, "SUM", group)


def max_over_ranks(value: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Largest entries of a tensor of equal shape over all ranks, without gradient; otherwise as `sum_over_ranks`."""
    return _reduced(value, "MAX", group)


def share_of_mean(
    total: Tensor, rows: Tensor | int, gather: bool = True, group: dist.ProcessGroup | None = None
) -> Tensor:
    """This rank's share of a mean over the rows of all ranks: the shares add up to the mean of the union.

    Args:
        total: 0-d, the sum over the rows of this rank; carries the gradient.
        rows: number of rows of this rank, which may be 0.
        gather: False leaves the other ranks out, as without a process group.
        group: process group; None is the default one.

    Returns:
        0-d, `total` over the number of rows of all ranks; zero with a graph where no rank has a row.
    """
    # In float64, because a float32 counts to 2^24 only. A number is filled in on the device, which waits for nothing.
    count = rows.double() if isinstance(rows, Tensor) else total.new_full((), rows, dtype=torch.float64)
    if gather:
        count = sum_over_ranks(count, group)
    return total / count.clamp(min=1).to(total.dtype)


def every_nth(group: dist.ProcessGroup | None = None) -> slice:
    """The part of a list that is this rank's where the ranks share one list: all of it on one rank.

    Args:
        group: process group; None is the default one.

    Returns:
        every n-th item, n the number of ranks, from this rank's number on.
    """
    if not several_ranks(group):
        return slice(None)
    return slice(dist.get_rank(group), None, dist.get_world_size(group))


def _reduced(value: Tensor, operation: str, group: dist.ProcessGroup | None) -> Tensor:
    value = value.detach()
    if several_ranks(group):
        value = value.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(value, getattr(dist.ReduceOp, operation), group=group)
    return value


def objects_of_all_ranks(value: Any) -> list[Any]:
    """A picklable value of every rank of the default group, in rank order; every rank must call it."""
    if not several_ranks(None):
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def several_ranks(group: dist.ProcessGroup | None = None) -> bool:
    """Whether a process group with more than one rank is initialised."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1
