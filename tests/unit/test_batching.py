"""Batches by tokens: every text once, little padding, the same features in the same order."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from mclip_fairseq.batching import (
    GPU_COST,
    BatchCost,
    batch_cost,
    batches_by_tokens,
    encode_padded,
    one_behind,
    split_padded,
)


@pytest.mark.parametrize("budget", [1, 40, 200, 10_000])
@pytest.mark.parametrize("most", [None, 1, 7])
def test_each_text_is_in_one_batch_that_keeps_the_limits(budget: int, most: int | None) -> None:
    sizes = np.random.default_rng(0).integers(3, 60, 150)
    batches = list(batches_by_tokens(sizes, BatchCost(budget, 30), most))
    assert sorted(np.concatenate(batches).tolist()) == list(range(150))
    for rows in batches:
        assert len(rows) == 1 or sizes[rows].max() * len(rows) <= budget
        assert most is None or len(rows) <= most
    longest = [sizes[rows].max() for rows in batches]
    assert longest == sorted(longest)


def cost_of(batches: Iterable[Sequence[int]], sizes: Sequence[int], cost: BatchCost) -> int:
    """Padded tokens and the overhead of the batches."""
    return sum(len(rows) * max(sizes[row] for row in rows) + cost.overhead for rows in batches)


@pytest.mark.parametrize("overhead", [0, 3, 10, 1000])
def test_no_other_way_of_cutting_costs_less(overhead: int) -> None:
    cost = BatchCost(10**6, overhead)
    for seed in range(20):
        sizes = np.random.default_rng(seed).integers(1, 20, 9).tolist()
        order = sorted(range(9), key=lambda row: sizes[row])
        ways = (
            [order[start:end] for start, end in pairwise([0, *cuts, 9])]
            for count in range(9)
            for cuts in combinations(range(1, 9), count)
        )
        ours = cost_of((rows.tolist() for rows in batches_by_tokens(np.array(sizes), cost)), sizes, cost)
        assert ours == min(cost_of(way, sizes, cost) for way in ways)


def test_overhead_decides_between_batches_and_padding() -> None:
    sizes = np.array([2, 2, 9, 2])
    assert [rows.tolist() for rows in batches_by_tokens(sizes, BatchCost(100, 20))] == [[0, 1, 3], [2]]
    assert [rows.tolist() for rows in batches_by_tokens(sizes, BatchCost(100, 22))] == [[0, 1, 3, 2]]
    assert list(batches_by_tokens(np.zeros(0, dtype=np.int64), BatchCost(100, 22))) == []


def test_little_padding_is_left() -> None:
    """Also in a list of less than a hundred captions, which would fit into one batch."""
    sizes = np.random.default_rng(0).normal(17, 6, 96).clip(5, 50).astype(np.int64)
    batches = batches_by_tokens(sizes, batch_cost(torch.device("cpu")), 256)
    assert sum(len(rows) * sizes[rows].max() for rows in batches) < 1.15 * sizes.sum() < 96 * sizes.max()
    assert batch_cost(torch.device("cuda")) == GPU_COST


def padded(left: bool) -> tuple[dict[str, Tensor], Tensor]:
    """Ids 1 to n of texts of different lengths, 0 elsewhere."""
    sizes = torch.tensor([4, 9, 1, 4, 7, 2])
    position = torch.arange(12).flip(0) if left else torch.arange(12)
    mask = position < sizes[:, None]
    return {"ids": torch.arange(1, 13).expand(6, 12) * mask, "mask": mask}, mask


@pytest.mark.parametrize("left", [False, True])
def test_columns_of_padding_are_cut_off(left: bool) -> None:
    inputs, mask = padded(left)
    batches = list(split_padded(inputs, mask, BatchCost(16, 0)))
    for rows, batch in batches:
        assert batch["ids"].shape == batch["mask"].shape == (len(rows), int(mask[rows].sum(1).max()))
        assert batch["ids"].sum(1).tolist() == inputs["ids"][rows].sum(1).tolist()
    assert len(batches) == 5
    # Without a mask nothing may be cut.
    assert {batch["ids"].shape[1] for _, batch in split_padded(inputs, None, BatchCost(16, 0))} == {12}


@pytest.mark.parametrize("budget", [1, 16, 1000])
def test_features_come_in_the_order_of_the_inputs(budget: int) -> None:
    inputs, mask = padded(left=True)
    calls: list[int] = []

    def encode(batch: dict[str, Tensor]) -> Tensor:
        calls.append(len(batch["ids"]))
        return torch.stack([batch["ids"].sum(1), batch["mask"].sum(1)], dim=1)

    expected = torch.stack([inputs["ids"].sum(1), mask.sum(1)], dim=1)
    assert torch.equal(encode_padded(encode, inputs, mask, BatchCost(budget, 0)), expected)
    assert len(calls) == 6 if budget == 1 else len(calls) == 5
    assert torch.equal(encode_padded(encode, inputs, None, BatchCost(budget, 0)), expected)


def test_a_text_of_padding_alone_keeps_its_columns() -> None:
    ids = torch.zeros(1, 3)
    ((_, batch),) = split_padded({"ids": ids}, ids.bool(), BatchCost(5, 0))
    assert batch["ids"].shape == (1, 3)


def test_the_next_batch_begins_before_one_is_given() -> None:
    begun: list[int] = []

    def batches() -> Iterator[int]:
        for number in range(3):
            begun.append(number)
            yield number

    assert [(number, len(begun)) for number in one_behind(batches())] == [(0, 2), (1, 3), (2, 3)]
    assert list(one_behind([])) == []
