"""Every kind of index against a slow and obvious search, and its recall against a count by hand."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mclip_fairseq.search.kinds import (
    Searcher,
    compacted,
    efforts,
    factory_string,
    faiss,
    new_index,
    read_index,
    write_index,
)
from mclip_fairseq.search.recall import Yardstick, exact_neighbours, recall_sentence
from mclip_fairseq.search.settings import IVF_KINDS, KINDS, IndexSettings, check_settings

DIM, COUNT = 16, 2000


def factory_of(kind: str) -> str:
    """An index of `COUNT` vectors, with 16 lists where the kind has lists."""
    return factory_string(IndexSettings(kind, 16 if kind in IVF_KINDS else None), DIM, COUNT)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, DIM))[rng.integers(0, 40, COUNT)] + 0.4 * rng.normal(size=(COUNT, DIM))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def made(vectors: np.ndarray) -> dict[str, Any]:
    indexes = {}
    for kind in KINDS:
        index = new_index(factory_of(kind), DIM)
        index.train(vectors)
        index.add(vectors)
        indexes[kind] = index
    return indexes


def slow_search(vectors: np.ndarray, queries: np.ndarray, k: int, removed: set[int] = frozenset()) -> list[list[int]]:  # type: ignore[assignment]
    result = []
    for query in queries:
        cosines = sorted(((float(query @ row), -number) for number, row in enumerate(vectors)), reverse=True)
        result.append([-number for _, number in cosines if -number not in removed][:k])
    return result


@pytest.mark.parametrize("kind", ["exact", "ivf", "hnsw"])
def test_the_nearest_rows_that_were_not_removed_are_found(kind: str, vectors: np.ndarray, made: dict[str, Any]) -> None:
    queries = vectors[:6] + np.float32(0.01)
    effort = None if kind == "exact" else efforts(kind, made[kind])[-1]
    removed = [int(row) for row in Searcher(made[kind], kind, effort)(queries, 2)[1][:, 0]]
    scores, rows = Searcher(made[kind], kind, effort, removed)(queries, 5)
    assert rows.tolist() == slow_search(vectors, queries, 5, set(removed))
    assert rows.tolist() != slow_search(vectors, queries, 5)
    assert scores == pytest.approx(np.take_along_axis(queries @ vectors.T, rows, axis=1), abs=1e-5)


@pytest.mark.parametrize("kind", list(KINDS))
def test_an_index_comes_back_from_its_file(kind: str, made: dict[str, Any], tmp_path: Path, vectors: Any) -> None:
    entry = write_index(made[kind], tmp_path / "vectors.faiss")
    assert len(entry["sha256"]) == 64
    again = read_index(tmp_path / entry["file"], kind, DIM, COUNT)
    effort = None if kind == "exact" else 16
    for before, after in zip(*(Searcher(i, kind, effort)(vectors[:9], 7) for i in (made[kind], again)), strict=True):
        assert np.array_equal(before, after)
    assert [path.name for path in tmp_path.iterdir()] == ["vectors.faiss"]


@pytest.mark.parametrize("kind", ["ivf", "sq8", "pq"])
@pytest.mark.parametrize("lists", [17, 60_000_000, 4_000_000_000, 2**63])
@pytest.mark.parametrize("places", [(37,), (b"ilar",), (37, b"ilar")])
def test_lists_that_the_file_does_not_hold_are_refused_before_faiss_reads_it(
    kind: str, lists: int, places: Any, made: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_index(made[kind], tmp_path / "x")
    content = bytearray((tmp_path / "x").read_bytes())
    for place in places:
        struct.pack_into("<Q", content, place if place == 37 else content.index(place) + 4, lists)
    (tmp_path / "x").write_bytes(content)
    monkeypatch.setattr(faiss(), "read_index", lambda *a: pytest.fail("read before it was verified"))
    with pytest.raises(ValueError, match=rf"x: claims .*{lists}.* lists, but has 16 centres; build the index again"):
        read_index(tmp_path / "x", kind, DIM, COUNT)


@pytest.mark.parametrize("kind", ["ivf", "sq8", "pq"])
@pytest.mark.parametrize("cut", [3, 30, 40, 60, 80, 100, 1100, 1140, 1200])
def test_a_header_that_ends_early_is_a_sentence(kind: str, cut: int, made: dict[str, Any], tmp_path: Path) -> None:
    write_index(made[kind], tmp_path / "x")
    for more in (b"", b"\xff" * 60):
        (tmp_path / "y").write_bytes((tmp_path / "x").read_bytes()[:cut] + more)
        with pytest.raises(ValueError, match=r"y: (is not a (readable )?faiss index|claims )"):
            read_index(tmp_path / "y", kind, DIM, COUNT)


@pytest.mark.parametrize("row", [-1, COUNT, 2**62])
def test_lists_that_name_missing_rows_are_refused(row: int, made: dict[str, Any], tmp_path: Path) -> None:
    write_index(made["ivf"], tmp_path / "x")
    content = bytearray((tmp_path / "x").read_bytes())
    struct.pack_into("<q", content, len(content) - 8, row)  # the last list's last id
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ValueError, match="x: list 15 names a row beyond its 2000; build the index again"):
        read_index(tmp_path / "x", "ivf", DIM, COUNT)


def test_more_effort_than_rows_is_harmless(vectors: np.ndarray, made: dict[str, Any]) -> None:
    rows = Searcher(made["hnsw"], "hnsw", 2**31 - 1)(vectors[:3], 5)[1]
    assert np.array_equal(rows, Searcher(made["hnsw"], "hnsw", COUNT)(vectors[:3], 5)[1])


def test_many_lists_of_short_codes_come_back(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(1200, 32)).astype(np.float32)
    index = new_index(factory_string(IndexSettings("pq", 1100, 1), 32, 1200), 32)
    index.train(vectors)
    index.add(vectors)
    write_index(index, tmp_path / "vectors.faiss")
    again = read_index(tmp_path / "vectors.faiss", "pq", 32, 1200)
    before, after = (Searcher(i, "pq", 1100)(vectors[:9], 5)[1] for i in (index, again))
    assert np.array_equal(before, after)


def test_asking_for_more_than_is_left_gives_all(vectors: np.ndarray, made: dict[str, Any]) -> None:
    few = Searcher(made["exact"], "exact", None, list(range(3, COUNT)))
    assert few.alive == 3
    assert sorted(few(vectors[:1], 10)[1][0]) == [0, 1, 2]
    assert Searcher(made["exact"], "exact", None, list(range(COUNT)))(vectors[:4], 10)[1].shape == (4, 0)


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_the_few_remaining_rows_are_all_found(kind: str, vectors: np.ndarray, made: dict[str, Any]) -> None:
    removed = [row for row in range(COUNT) if row % 100]
    scores, rows = Searcher(made[kind], kind, 1 if kind == "ivf" else 16, removed)(vectors[:9], 20)
    assert rows.tolist() == slow_search(vectors, vectors[:9], 20, set(removed))
    assert scores == pytest.approx(np.take_along_axis(vectors[:9] @ vectors.T, rows, axis=1), abs=1e-5)


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_a_removal_of_half_does_not_ruin_the_search(kind: str, vectors: np.ndarray, made: dict[str, Any]) -> None:
    effort, removed = 2 if kind == "ivf" else 16, list(range(0, COUNT, 2))
    kept = Searcher(made[kind], kind, effort, removed)(vectors[:40], 10)[1]
    truth = np.array(slow_search(vectors, vectors[:40], 10, set(removed)))
    share = (kept[:, :, None] == truth[:, None]).any(axis=1).mean()
    everything = np.array(slow_search(vectors, vectors[:40], 10))
    before = (Searcher(made[kind], kind, effort)(vectors[:40], 10)[1][:, :, None] == everything[:, None]).any(axis=1)
    assert share > before.mean() - 0.02


@pytest.mark.parametrize("kind", list(KINDS))
def test_dropping_removed_rows_changes_no_answer(
    kind: str, vectors: np.ndarray, made: dict[str, Any], tmp_path: Path
) -> None:
    keep = np.random.default_rng(3).random(COUNT) < 0.3
    keep[0] = False
    write_index(made[kind], tmp_path / "vectors.faiss")
    index = read_index(tmp_path / "vectors.faiss", kind, DIM, COUNT, writable=True)
    effort = None if kind == "exact" else efforts(kind, index)[-1]
    scores, rows = Searcher(index, kind, effort, np.flatnonzero(~keep).tolist())(vectors[:20], 7)
    fewer = compacted(index, kind, factory_of(kind), keep)
    write_index(fewer, tmp_path / "fewer.faiss")
    again = read_index(tmp_path / "fewer.faiss", kind, DIM, int(keep.sum()), writable=True)
    new_scores, new_rows = Searcher(again, kind, effort)(vectors[:20], 7)
    assert np.flatnonzero(keep)[new_rows].tolist() == rows.tolist()
    assert new_scores == pytest.approx(scores, abs=1e-6)
    again.add(vectors[:1])
    if kind != "pq":
        assert Searcher(again, kind, effort)(vectors[:1], 1)[1] == [[int(keep.sum())]]


def test_exact_neighbours_do_not_depend_on_the_blocks(vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mclip_fairseq.search.recall.BLOCK", 301)
    queries = vectors[::500]
    neighbours = exact_neighbours(lambda rows: vectors[rows], COUNT, queries, 8)
    assert neighbours.tolist() == slow_search(vectors, queries, 8)


@pytest.mark.parametrize("own_images", [True, False])
def test_recall_is_what_a_count_by_hand_gives(own_images: bool, vectors: np.ndarray, made: dict[str, Any]) -> None:
    queries = None if own_images else np.ascontiguousarray(vectors[:50][:, ::-1])
    yardstick = Yardstick(lambda rows: vectors[rows], COUNT, queries)
    narrow = Searcher(made["ivf"], "ivf", 1)
    measured = yardstick.measure(narrow)
    hits = first = 0
    for number, query in enumerate(yardstick.queries):
        own = set() if yardstick.own is None else {int(yardstick.own[number])}
        truth = [row for row in slow_search(vectors, query[None], 11)[0] if row not in own][:10]
        rows = [row for row in narrow(query[None], 11)[1][0].tolist() if row not in own][:10]
        hits += len(set(truth) & set(rows))
        first += truth[0] in rows
    assert measured["recall_at_k"] == pytest.approx(hits / (10 * len(yardstick.queries)), abs=1e-4)
    assert measured["nearest_found"] == pytest.approx(first / len(yardstick.queries), abs=1e-4)
    assert 0.1 < measured["recall_at_k"] < 0.999  # one list of sixteen must cost something
    assert yardstick.measure(Searcher(made["ivf"], "ivf", 16))["recall_at_k"] == 1
    assert yardstick.measure(Searcher(made["exact"], "exact", None))["nearest_found"] == 1


def test_any_of_equal_images_counts_as_found() -> None:
    same = np.tile(np.eye(5, dtype=np.float32)[0], (600, 1))
    index = new_index("HNSW32,Flat", 5)
    index.add(same)
    measured = Yardstick(lambda rows: same[rows], 600).measure(Searcher(index, "hnsw", 16))
    assert (measured["recall_at_k"], measured["nearest_found"]) == (1, 1)


@pytest.mark.parametrize(
    ("settings", "count", "words"),
    [
        ({"kind": "exact", "effort": 4}, 9, "exact always finds all"),
        ({"kind": "exact", "recall": 0.9}, 9, "exact always finds all"),
        ({"kind": "ivf", "lists": 16, "effort": 4, "recall": 0.9}, 900, "give only one of them"),
        ({"kind": "sq8", "lists": 16, "effort": 17}, 900, "--effort 17 is more than the 16 lists of the index"),
        ({"kind": "hnsw", "effort": 10}, 9, "--effort 10 is more than the 9 images of the index"),
        ({"kind": "exact", "lists": 8}, 1000, "--lists is for"),
        ({"kind": "ivf", "code_bytes": 8}, 1000, "--bytes is for --kind pq"),
        ({"kind": "ivf", "lists": 2000}, 1000, "2000 lists for 1000 images are too many"),
        ({"kind": "pq", "code_bytes": 7}, 1000, "--bytes 7 does not divide"),
        ({"kind": "pq"}, 100, "at least 256 images"),
        ({"kind": "ivf", "lists": 16, "effort": 16}, 900, ""),
        ({"kind": "exact"}, 9, ""),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: Any, count: int, words: str) -> None:
    with pytest.raises(ValueError, match=words) if words else contextlib.nullcontext():
        check_settings(IndexSettings(**settings), 512, count)


def test_effort_grows_until_the_recall_is_reached(vectors: np.ndarray, made: dict[str, Any]) -> None:
    yardstick = Yardstick(lambda rows: vectors[rows], COUNT)
    measured = yardstick.tune(made["ivf"], "ivf", 0.995, None)
    assert measured["recall_at_k"] >= 0.995
    assert 1 < measured["effort"] <= 16
    less = yardstick.measure(Searcher(made["ivf"], "ivf", measured["effort"] // 2))
    assert less["recall_at_k"] < 0.995
    assert yardstick.tune(made["ivf"], "ivf", 0.9, 1)["effort"] == 1
    assert "of the 10 nearest" in recall_sentence(measured, "ivf")


def test_compression_costs_recall_and_saves_room(vectors: np.ndarray, made: dict[str, Any], tmp_path: Path) -> None:
    yardstick = Yardstick(lambda rows: vectors[rows], COUNT)
    recall = {kind: yardstick.tune(made[kind], kind, 1.0, 16)["recall_at_k"] for kind in ("ivf", "sq8", "pq")}
    assert recall["ivf"] == 1
    assert recall["pq"] < recall["sq8"] <= 1
    for kind in made:
        write_index(made[kind], tmp_path / kind)
    size = {kind: (tmp_path / kind).stat().st_size for kind in made}
    assert size["sq8"] < size["exact"] < size["hnsw"]


def test_factory_strings() -> None:
    assert factory_string(IndexSettings("ivf"), 512, 1_000_000) == "IVF2048,Flat"
    assert factory_string(IndexSettings("pq"), 512, 100_000) == "IVF512,PQ64"
    assert factory_string(IndexSettings("hnsw"), 512, 10) == "HNSW32,Flat"
    assert factory_string(IndexSettings("ivf"), 512, 1) == "IVF1,Flat"
