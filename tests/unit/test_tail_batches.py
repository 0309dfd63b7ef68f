"""A short last batch of a part stays with a warning, is filled, or is left out."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from mclip_fairseq.data.sampling import TemperatureSampledDataset, has_short_tail
from tests.unit.test_sampling import Part, batches_of

LIMITS = {"max_tokens": None, "max_sentences": 8, "required_batch_size_multiple": 1}


def dataset(tail: str, shuffle: bool = True, **lengths: list[int]) -> TemperatureSampledDataset:
    parts = {name: Part(sizes) for name, sizes in (lengths or {"a": [4] * 19, "b": [5] * 13}).items()}
    return TemperatureSampledDataset(parts, seed=7, shuffle=shuffle, tail=tail)


def sizes(data: TemperatureSampledDataset, **limits: int | None) -> list[int]:
    return [len(batch) for batch in batches_of(data, **{**LIMITS, **limits})]


def test_the_default_keeps_every_batch_and_names_the_short_ones_once(caplog: pytest.LogCaptureFixture) -> None:
    data = dataset("warn")
    with caplog.at_level(logging.WARNING):
        assert sizes(data) == [8, 8, 3, 8, 5]
        assert sizes(data) == [8, 8, 3, 8, 5]
    assert [record.getMessage() for record in caplog.records] == [
        "the last batch is less than half as large as the one before it: a 3 after 8 samples; a contrast over few "
        "samples says little: --tail-batches fill takes more samples, --tail-batches drop leaves it out"
    ]


def test_batches_of_one_sample_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    for data in (dataset("warn"), dataset("fill", a=[4])):
        assert set(sizes(data, max_sentences=1)) == {1}
        assert set(sizes(data, max_sentences=1)) == {1}
        (record,) = caplog.records
        assert record.getMessage().startswith("every batch has one sample, so on one rank a contrastive loss is 0")
        caplog.clear()
    assert set(sizes(dataset("warn", shuffle=False), max_sentences=1)) == {1}  # validation has a warning of its own
    assert 2 in sizes(dataset("warn"), max_sentences=2)
    assert not caplog.records


@pytest.mark.parametrize(("tail", "expected"), [("fill", [8, 8, 8, 8, 5]), ("drop", [8, 8, 8, 5])])
def test_filled_or_left_out(tail: str, expected: list[int], caplog: pytest.LogCaptureFixture) -> None:
    """Only what is less than half; a filled batch has no sample twice, and every sample is still in some batch."""
    data = dataset(tail)
    assert sizes(data) == expected
    assert not caplog.records
    batches = batches_of(data, **LIMITS)
    assert all(len(set(batch)) == len(batch) and len({part for part, _ in batch}) == 1 for batch in batches)
    seen = {sample for batch in batches for sample in batch}
    assert len(seen) == (32 if tail == "fill" else 29)


def test_filling_stays_below_max_tokens() -> None:
    """The last sample is long, so that fewer fit beside it than into the batch before."""
    long = dataset("fill", a=[4] * 16 + [9])
    assert sizes(long, max_sentences=None, max_tokens=32) == [8, 8, 3]
    batches = batches_of(long, **{**LIMITS, "max_sentences": None, "max_tokens": 32})
    assert (0, 16) in batches[-1]
    assert sizes(dataset("fill", a=[4] * 16 + [40]), max_sentences=None, max_tokens=40) == [10, 6, 1]


@pytest.mark.parametrize("tail", ["warn", "fill", "drop"])
def test_what_is_not_sampled_or_not_a_tail_stays(tail: str, caplog: pytest.LogCaptureFixture) -> None:
    """Validation, a part of one batch, and a last batch of half of the one before it."""
    assert sizes(dataset(tail, shuffle=False)) == [8, 8, 3, 8, 5]
    assert sizes(dataset(tail, a=[4] * 3)) == [3]
    assert sizes(dataset(tail, a=[4] * 12)) == [8, 4]
    assert not caplog.records
    assert has_short_tail([np.arange(8), np.arange(3)])
    assert not has_short_tail([np.arange(1)])
