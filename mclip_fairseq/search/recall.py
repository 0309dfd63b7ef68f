"""Recall of an approximate index against exact search, and the least effort that reaches a target recall."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mclip_fairseq.search.engine import Vectors
from mclip_fairseq.search.kinds import Searcher, efforts, faiss

K = 10
QUERIES = 256
BLOCK = 16384  # rows compared at a time
TIE = 1e-6  # cosines that differ by less are equal
Rows = npt.NDArray[np.int64]
Take = Callable[[Rows], Vectors]


class Searches(Protocol):
    """What is measured: a search with an effort."""

    @property
    def effort(self) -> int | None:
        """How much it compares."""

    def __call__(self, queries: Vectors, k: int) -> tuple[Vectors, Rows]:
        """Cosines and rows of the k nearest, (n, k) each; a row of -1 where fewer were found."""


class Yardstick:
    """Queries with their true neighbours.

    Args:
        take: vectors of rows.
        count: rows.
        queries: (n, dim) normalised; None takes `QUERIES` of the rows themselves, and a row is then not its own
            neighbour.
    """

    def __init__(self, take: Take, count: int, queries: Vectors | None = None) -> None:
        self.own: Rows | None = None
        self.k = max(1, min(K, count - 1))
        if queries is None:
            self.own = np.sort(np.random.default_rng(1).choice(count, min(QUERIES, count), replace=False))
            queries = take(self.own)
        self.queries = queries
        start = time.perf_counter()
        truth = self._others(exact_neighbours(take, count, queries, self._searched))
        self.exact_ms = 1000 * (time.perf_counter() - start) / len(queries)
        self.take = take
        self.truth = self._cosines(truth)

    @property
    def _searched(self) -> int:
        return self.k + (self.own is not None)

    def _others(self, neighbours: Rows) -> Rows:
        """(n, k) neighbours without the query's own row."""
        if self.own is None:
            return neighbours[:, : self.k]
        foreign = neighbours != self.own[:, None]
        order = np.argsort(~foreign, axis=1, kind="stable")
        return np.take_along_axis(neighbours, order, axis=1)[:, : self.k]

    def _cosines(self, rows: Rows) -> Vectors:
        """(n, k) cosines of queries and rows, by the vectors themselves; -inf where no row was found (-1)."""
        distinct, position = np.unique(rows, return_inverse=True)
        vectors = self.take(np.maximum(distinct, 0))[position.reshape(rows.shape)]
        cosines: Vectors = np.where(rows < 0, -np.inf, np.einsum("nd,nkd->nk", self.queries, vectors))
        return cosines

    def measure(self, searcher: Searches) -> dict[str, Any]:
        """Share of the true nearest, and of the true `K` nearest, that a search finds."""
        start = time.perf_counter()
        _, rows = searcher(self.queries, self._searched)
        seconds = time.perf_counter() - start
        # Cosines are compared, not rows: of equal images any one is as good as another.
        cosines = self._cosines(self._others(rows))
        hits = cosines >= self.truth.min(axis=1, keepdims=True) - TIE
        nearest = (cosines >= self.truth.max(axis=1, keepdims=True) - TIE).any(axis=1)
        return {
            "effort": searcher.effort,
            "k": self.k,
            "nearest_found": round(float(nearest.mean()), 4),
            "recall_at_k": round(float(hits.mean()), 4),
            "queries": len(self.queries),
            "queries_are": "images of the index" if self.own is not None else "texts",
            "ms_per_query": round(1000 * seconds / len(self.queries), 3),
            "exact_ms_per_query": round(self.exact_ms, 3),
        }

    def tune(self, index: Any, kind: str, target: float, effort: int | None) -> dict[str, Any]:
        """The measurement at a given effort, or at the least effort that reaches the target recall."""
        attempts = efforts(kind, index) if effort is None else [effort]
        return self.first_that_reaches((Searcher(index, kind, attempt) for attempt in attempts), target)

    def first_that_reaches(self, searchers: Iterable[Searches], target: float) -> dict[str, Any]:
        """The measurement of the first search that reaches a recall, or of the last."""
        measured: dict[str, Any] = {}
        for searcher in searchers:
            measured = self.measure(searcher)
            if measured["recall_at_k"] >= target:
                break
        return measured


def exact_neighbours(take: Take, count: int, queries: Vectors, k: int) -> Rows:
    """(n, k) rows with the largest cosines, best first, in memory that does not grow with the number of rows."""
    heap = faiss().ResultHeap(len(queries), min(k, count), keep_max=True)
    for start in range(0, count, BLOCK):
        rows = np.arange(start, min(start + BLOCK, count))
        block = np.ascontiguousarray(take(rows), dtype=np.float32)
        scores, neighbours = faiss().knn(queries, block, min(k, len(rows)), metric=faiss().METRIC_INNER_PRODUCT)
        heap.add_result(scores, neighbours + start)
    heap.finalize()
    return np.asarray(heap.I, dtype=np.int64)


def recall_sentence(recall: dict[str, Any], kind: str) -> str:
    """The measurement in words."""
    effort = f"breadth {recall['effort']}" if kind in ("hnsw", "diskann") else f"{recall['effort']} lists searched"
    return (
        f"{kind}: finds {100 * recall['recall_at_k']:.1f} % of the {recall['k']} nearest and "
        f"{100 * recall['nearest_found']:.1f} % of the nearest that exact search finds ({recall['queries']} "
        f"{recall['queries_are']} as queries, {effort}); {recall['ms_per_query']:.2f} ms a query instead of "
        f"{recall['exact_ms_per_query']:.2f}"
    )
