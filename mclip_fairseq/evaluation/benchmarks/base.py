"""What every benchmark offers, whatever it measures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from mclip_fairseq.encoding.galleries import Encoder, Gallery
from mclip_fairseq.evaluation.benchmarks.settings import Settings


class Benchmark(Protocol):
    """Data and what to measure on them.

    Attributes:
        name: for tables.
        kind: "retrieval", "bitext", "similarity" or "classification".
        headline: the metric that stands for a language in a comparison.
        galleries: where its images may come from; empty for text alone.
        notes: what a reader of the numbers must know, such as leaks.
    """

    name: str
    kind: str
    headline: str
    galleries: Sequence[Gallery]
    notes: Sequence[str]

    def describe(self) -> dict[str, Any]:
        """Files, hashes and counts, for the report and to recognise a report of the same data."""

    def counts(self) -> dict[str, dict[str, int]]:
        """Language or table -> its number of `images`, `captions` or `pairs`, as far as they show a part of the set."""
        return {}

    def evaluate(self, model: Encoder, settings: Settings) -> dict[str, Any]:
        """`results`, `average`, `confidence` and whatever else belongs in the report."""
