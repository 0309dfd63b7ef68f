"""Batches of texts of similar length: an encoder's time goes into tokens, not into padding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

T = TypeVar("T")


class BatchCost(NamedTuple):
    """What batches cost on a device, in tokens.

    Attributes:
        budget: tokens of a batch, pads included. More of them gain nothing.
        overhead: a batch takes as long as this many further tokens.
    """

    budget: int
    overhead: int


# Measured with XLM-R base on a CPU: 256 tokens at once take 8 % longer per token than 2,048. A GPU needs more tokens.
CPU_COST, GPU_COST = BatchCost(1024, 32), BatchCost(16384, 1024)


def batch_cost(device: torch.device) -> BatchCost:
    """What batches of texts cost on a device."""
    return CPU_COST if device.type == "cpu" else GPU_COST


def batches_by_tokens(
    sizes: npt.NDArray[np.int64], cost: BatchCost, most: int | None = None
) -> Iterator[npt.NDArray[np.int64]]:
    """Put texts of similar length together, at the least cost of padding and batches.

    Args:
        sizes: (texts,) tokens of each.
        cost: what batches cost; a text beyond the budget is a batch of its own.
        most: texts of a batch; None sets no limit.

    Yields:
        numbers of texts, shortest texts first; each text is in one batch.
    """
    order = np.argsort(sizes, kind="stable")
    lengths, counts = np.unique(np.maximum(sizes, 1), return_counts=True)
    start = 0
    for length, count in _groups(lengths, counts, cost, most):
        parts = -(-count // _rows(length, cost, most))
        yield from np.array_split(order[start : start + count], parts)
        start += count


def _rows(length: Any, cost: BatchCost, most: int | None) -> Any:
    """Texts of one length, or of each of several, that a batch can hold."""
    rows = np.maximum(cost.budget // length, 1)
    return rows if most is None else np.minimum(rows, most)


def _groups(
    lengths: npt.NDArray[np.int64], counts: npt.NDArray[np.int64], cost: BatchCost, most: int | None
) -> list[tuple[int, int]]:
    """Divide sorted lengths into ranges, each padded to its longest: (longest, texts) of each, in order."""
    # The least cost of the texts up to each length is that of the texts up to a shorter one, plus one more range.
    before = np.concatenate([[0], np.cumsum(counts)])
    least, cuts = np.zeros(len(before)), np.zeros(len(before), dtype=np.int64)
    for end in range(1, len(before)):
        texts, length = before[end] - before[:end], lengths[end - 1]
        batches = -(-texts // _rows(length, cost, most))
        total = least[:end] + texts * length + batches * cost.overhead
        cuts[end] = total.argmin()
        least[end] = total[cuts[end]]
    groups, end = [], len(lengths)
    while end:
        groups.append((int(lengths[end - 1]), int(before[end] - before[cuts[end]])))
        end = int(cuts[end])
    return groups[::-1]


def split_padded(
    inputs: Mapping[str, Tensor], mask: Tensor | None, cost: BatchCost, most: int | None = None
) -> Iterator[tuple[npt.NDArray[np.int64], dict[str, Tensor]]]:
    """Split padded model inputs into batches of similar length and cut the columns that hold only padding.

    Args:
        inputs: (texts, length) tensors by name.
        mask: (texts, length) bool, False at pads on either side; None leaves the length as it is.
        cost: what batches cost.
        most: texts of a batch; None sets no limit.

    Yields:
        numbers of texts, and their inputs.
    """
    count, length = next(iter(inputs.values())).shape
    sizes = np.full(count, length) if mask is None else mask.sum(1).numpy()
    for rows in batches_by_tokens(sizes, cost, most):
        columns = slice(None)
        if mask is not None:
            filled = mask[rows].any(0).nonzero()
            columns = slice(int(filled.min()), int(filled.max()) + 1) if len(filled) else slice(None)
        yield rows, {name: tensor[rows, columns] for name, tensor in inputs.items()}


def encode_padded(
    encode: Callable[[dict[str, Tensor]], Tensor], inputs: Mapping[str, Tensor], mask: Tensor | None, cost: BatchCost
) -> Tensor:
    """Encode padded inputs in batches of similar length.

    Args:
        encode: inputs of some texts -> (texts, dim).
        inputs: (texts, length) tensors by name, on the CPU; at least one text.
        mask: see `split_padded`.
        cost: what batches cost.

    Returns:
        (texts, dim) in the order of the inputs.
    """
    numbers, rows = zip(*((n, encode(batch)) for n, batch in split_padded(inputs, mask, cost)), strict=True)
    order = torch.from_numpy(np.argsort(np.concatenate(numbers)))
    features = torch.cat(rows)
    return features[order.to(features.device)]


def one_behind(batches: Iterable[T]) -> Iterator[T]:
    """The same batches, each given when the next has begun: copying one from a GPU then leaves the GPU with work."""
    waiting: list[T] = []
    for batch in batches:
        yield from waiting
        waiting = [batch]
    yield from waiting
