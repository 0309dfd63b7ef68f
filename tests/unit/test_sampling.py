"""Temperature sampling and batches of one part."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mclip_fairseq.data.sampling import TemperatureSampledDataset, draw_rows, temperature_sizes


class Part:
    """Rows that remember their number."""

    def __init__(self, sizes: list[int]) -> None:
        self.lengths = np.array(sizes, dtype=np.int64)

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        return self.lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def rows(self, rows: npt.NDArray[np.int64]) -> dict[str, Any]:
        return {"id": torch.from_numpy(rows)}


def test_temperature_one_keeps_the_sizes() -> None:
    assert temperature_sizes([10, 90, 0], 1.0).tolist() == [10, 90, 0]


def test_an_infinite_temperature_gives_equal_shares() -> None:
    assert temperature_sizes([900, 90, 9], float("inf")).tolist() == [333, 333, 333]


def test_high_temperature_evens_out() -> None:
    # Shares 0.1^(1/5) : 0.9^(1/5) = 0.631 : 0.979, so 39 and 61 of 100.
    assert temperature_sizes([10, 90], 5.0).tolist() == [39, 61]
    with pytest.raises(ValueError, match="positive"):
        temperature_sizes([1], 0.0)


@given(st.integers(1, 20), st.integers(0, 100))
def test_rows_are_drawn_evenly(size: int, count: int) -> None:
    counts = np.bincount(draw_rows(size, count, np.random.default_rng(0)), minlength=size)
    assert counts.sum() == count
    assert counts.max() - counts.min() <= 1


def dataset(shuffle: bool = True, temperature: float = 1.0) -> TemperatureSampledDataset:
    rng = np.random.default_rng(3)
    parts = {"a": Part(rng.integers(3, 30, 37).tolist()), "b": Part(rng.integers(3, 30, 11).tolist())}
    return TemperatureSampledDataset(parts, temperature, seed=7, shuffle=shuffle)


def batches_of(data: TemperatureSampledDataset, limit: int | None = None, **limits: Any) -> list[list[tuple[int, int]]]:
    indices = data.ordered_indices()
    kept, _ = data.filter_indices_by_size(indices, limit)
    batches = data.batch_by_size(kept, **limits)
    return [[(int(data.part_of[i]), int(data.row_of[i])) for i in batch] for batch in batches]


@pytest.mark.parametrize("multiple", [1, 8])
def test_no_batch_mixes_parts_and_none_is_lost_after_filtering(multiple: int) -> None:
    data = dataset()
    batches = batches_of(data, 20, max_sentences=8, max_tokens=None, required_batch_size_multiple=multiple)
    assert all(len({part for part, _ in batch}) == 1 for batch in batches)
    seen = sorted(pair for batch in batches for pair in batch)
    fitting = [(p, r) for p, part in enumerate(data.parts) for r, size in enumerate(part.sizes) if size <= 20]
    assert seen == fitting
    assert len(fitting) < len(data)


def test_max_tokens_bounds_every_batch() -> None:
    data = dataset()
    for batch in batches_of(data, max_tokens=64, max_sentences=None, required_batch_size_multiple=1):
        assert len(batch) * max(data.parts[p].sizes[r] for p, r in batch) <= 64


def test_epochs_differ_and_repeat() -> None:
    data = dataset(temperature=5.0)
    first = data.row_of.copy()
    data.set_epoch(2)
    second = data.row_of.copy()
    assert not np.array_equal(first, second)
    data.set_epoch(1)
    assert np.array_equal(first, data.row_of)
    again = dataset(temperature=5.0)
    again.set_epoch(2)
    assert np.array_equal(second, again.row_of)


def test_evaluation_keeps_every_sample_in_order() -> None:
    data = dataset(shuffle=False, temperature=5.0)
    assert data.row_of.tolist() == [*range(37), *range(11)]
    assert data.collater([40, 41])["id"].tolist() == [40, 41]
    assert data.collater([40, 41])["part"] == "b"


def test_nothing_to_train_on_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to train"):
        TemperatureSampledDataset({})
