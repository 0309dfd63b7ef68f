"""The kinds of faiss index: how each is made, read, and asked."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mclip_fairseq.search.ivf_header import check_lists
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import file_sha256

Vectors = npt.NDArray[np.float32]
# Kind -> what it costs, for the help text; and faiss's own name for it.
KINDS = {
    "exact": "all vectors are compared (default)",
    "ivf": "only the lists nearest to the query are compared",
    "hnsw": "a graph is walked; fast, and larger than exact",
    "sq8": "ivf with a byte per dimension, a quarter of the size",
    "pq": "ivf with --bytes per vector, the smallest",
}
FACTORIES = {
    "exact": "Flat",
    "ivf": "IVF{lists},Flat",
    "hnsw": "HNSW{links},Flat",
    "sq8": "IVF{lists},SQ8",
    "pq": "IVF{lists},PQ{bytes}",
}
CLASSES = {
    "exact": "IndexFlatIP",
    "ivf": "IndexIVFFlat",
    "hnsw": "IndexHNSWFlat",
    "sq8": "IndexIVFScalarQuantizer",
    "pq": "IndexIVFPQ",
}
# The first four bytes of the files of these classes: nothing else is handed to faiss.
MAGIC = {"exact": b"IxFI", "ivf": b"IwFl", "hnsw": b"IHNf", "sq8": b"IwSq", "pq": b"IwPQ"}
HNSW_LINKS = 32
MAX_BREADTH = 1024  # that is tried by itself
PQ_CENTROIDS = 256
PQ_ROUNDS = 8  # of 25: the codes are hardly worse, and training them is most of the build
TRAINING_PER_LIST = 48  # faiss warns below 39
MAX_LISTS = 65536


def faiss() -> Any:
    """The faiss package, imported when first used; its own annotations cover a part of it only."""
    return importlib.import_module("faiss")


def factory_string(kind: str, dim: int, count: int, lists: int | None = None, code_bytes: int | None = None) -> str:
    """Faiss's description of an index for so many vectors.

    Args:
        kind: of `KINDS`.
        dim: columns.
        count: vectors it is made for.
        lists: of the ivf kinds; None takes a power of two near twice the square root of the count.
        code_bytes: per vector, for pq; None takes an eighth of the dimensions.

    Raises:
        UserError: options that do not go with the kind or the data.
    """
    if lists is not None and kind in ("exact", "hnsw"):
        raise UserError(f"--lists goes with --kind ivf, sq8 and pq, not with {kind}")
    if code_bytes is not None and kind != "pq":
        raise UserError(f"--bytes goes with --kind pq, not with {kind}")
    chosen = lists or 2 ** max(0, round(math.log2(2 * math.sqrt(max(count, 1)))))
    chosen = min(chosen, MAX_LISTS, max(count, 1)) if lists is None else chosen
    if kind not in ("exact", "hnsw") and chosen > count:
        raise UserError(f"{chosen} lists for {count} images; take fewer --lists, or --kind exact")
    size = code_bytes or max(1, dim // 8)
    if kind == "pq" and dim % size:
        raise UserError(f"--bytes {size} does not divide the {dim} dimensions of the model; take a divisor")
    if kind == "pq" and count < PQ_CENTROIDS:
        raise UserError(f"--kind pq learns from at least {PQ_CENTROIDS} images, not {count}; take --kind exact")
    return FACTORIES[kind].format(lists=chosen, links=HNSW_LINKS, bytes=size)


def check_effort(kind: str, factory: str, count: int, effort: int | None, recall: float | None) -> None:
    """Refuse settings of the search that do not go with an index.

    Args:
        kind: of `KINDS`.
        factory: faiss's description.
        count: vectors of the index.
        effort: of the command line, where it is given.
        recall: of the command line, where it is given.

    Raises:
        UserError: settings of a faster kind for exact, two of them, or more effort than there is to be made.
    """
    if effort is None and recall is None:
        return
    if kind == "exact":
        raise UserError("--recall and --effort go with the faster kinds: exact finds all; leave them out")
    if effort is not None and recall is not None:
        raise UserError("--effort is given instead of --recall: leave one of them out")
    most = count if kind == "hnsw" else int(factory.removeprefix("IVF").partition(",")[0])
    if effort is not None and effort > most:
        raise UserError(
            f"--effort {effort} is more than the {most} {'images' if kind == 'hnsw' else 'lists'} there are"
        )


def new_index(factory: str, dim: int) -> Any:
    """An empty faiss index over cosines (inner products of normalised vectors)."""
    index = faiss().index_factory(dim, factory, faiss().METRIC_INNER_PRODUCT)
    if hasattr(index, "pq"):
        index.pq.cp.niter = PQ_ROUNDS
    return index


def training_rows(index: Any, count: int) -> npt.NDArray[np.int64]:
    """Rows to train on: enough for the lists and the codes, the same for the same number."""
    wanted = max(TRAINING_PER_LIST * getattr(index, "nlist", 0), 40 * PQ_CENTROIDS)
    if wanted >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, wanted, replace=False))


def compacted(index: Any, kind: str, factory: str, keep: npt.NDArray[np.bool_]) -> Any:
    """An index without the rows that are not kept; the others are numbered anew, in their order.

    Args:
        index: of faiss, which may be changed.
        kind: of `KINDS`.
        factory: faiss's description.
        keep: one value per row.
    """
    if kind == "exact":
        index.remove_ids(np.flatnonzero(~keep))
        return index
    if kind == "hnsw":  # a graph loses no nodes: it is made again
        fresh = new_index(factory, index.d)
        fresh.add(index.storage.reconstruct_batch(np.flatnonzero(keep)))
        return fresh
    fresh, numbers, lists = faiss().clone_index(index), np.cumsum(keep) - 1, index.invlists
    fresh.reset()
    for number in filter(lists.list_size, range(index.nlist)):
        size = lists.list_size(number)
        ids = faiss().rev_swig_ptr(lists.get_ids(number), size)
        codes = faiss().rev_swig_ptr(lists.get_codes(number), size * lists.code_size).reshape(size, -1)
        kept = keep[ids]
        if kept.any():  # both arrays need a name, for faiss is given their addresses alone
            ids, codes = np.ascontiguousarray(numbers[ids[kept]]), np.ascontiguousarray(codes[kept])
            fresh.invlists.add_entries(number, len(ids), faiss().swig_ptr(ids), faiss().swig_ptr(codes))
    fresh.ntotal = int(keep.sum())
    return fresh


def write_index(index: Any, path: Path) -> dict[str, str]:
    """Write an index so that it is there completely or not at all; returns its entry of the manifest.

    Raises:
        UserError: there is no room for it.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        faiss().write_index(index, str(temporary))
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        entry = {"file": path.name, "sha256": file_sha256(temporary)}
        os.replace(temporary, path)
    except RuntimeError as error:
        raise UserError(f"{path}: cannot be written; make room on the disk, and repeat the command") from error
    finally:
        temporary.unlink(missing_ok=True)
    return entry


def read_index(path: Path, kind: str, dim: int, rows: int, writable: bool = False) -> Any:
    """Read a faiss index of an expected kind; without `writable`, exact and hnsw vectors stay on the disk.

    Args:
        path: the file, whose hash was compared before.
        kind: of `KINDS`.
        dim: columns that it must have.
        rows: vectors that it must have.
        writable: whether vectors are to be added.

    Raises:
        UserError: it is another kind of file, or does not fit.
    """
    with path.open("rb") as stream:
        magic = stream.read(4)
    if kind not in MAGIC or magic != MAGIC[kind]:
        raise UserError(f"{path}: is not a faiss index of the kind {kind!r}; build the index again")
    if kind in ("ivf", "sq8", "pq"):
        check_lists(path)
    # Nor can a hostile file ask for arrays that a file of its size does not hold.
    faiss().set_deserialization_vector_byte_limit(max(2 * path.stat().st_size, 1 << 20))
    try:
        # The table is for distances, not for cosines, and may be larger than the file.
        flags = faiss().IO_FLAG_SKIP_PRECOMPUTE_TABLE | (0 if writable else faiss().IO_FLAG_MMAP_IFC)
        index = faiss().read_index(str(path), flags)
    except (RuntimeError, MemoryError) as error:
        raise UserError(f"{path}: is not a faiss index that can be read; build the index again") from error
    fits = type(index).__name__ == CLASSES[kind] and (index.d, index.ntotal) == (dim, rows)
    if not fits or index.metric_type != faiss().METRIC_INNER_PRODUCT or not _holds_its_own(index):
        raise UserError(
            f"{path}: holds {index.ntotal} vectors of {index.d} dimensions in a {type(index).__name__}, not the {rows} "
            f"of {dim} that belong to it; build the index again"
        )
    if getattr(index, "invlists", None) is not None:
        _check_ids(index, path)
    return index


def _check_ids(index: Any, path: Path) -> None:
    """Refuse lists of rows that are not there."""
    lists = index.invlists
    for number in filter(lists.list_size, range(index.nlist)):
        ids = faiss().rev_swig_ptr(lists.get_ids(number), lists.list_size(number))
        if ids.min() < 0 or ids.max() >= index.ntotal:
            raise UserError(f"{path}: list {number} names a row beyond its {index.ntotal}; build the index again")


def _holds_its_own(index: Any) -> bool:
    """Whether the inverted lists, where there are some, are part of the file and do not lead to another one."""
    lists = getattr(index, "invlists", None)
    return lists is None or isinstance(faiss().downcast_InvertedLists(lists), faiss().ArrayInvertedLists)


def efforts(kind: str, index: Any) -> list[int]:
    """Settings to try, cheapest first: lists that are searched (ivf), or breadth of the walk (hnsw)."""
    if kind == "exact":
        return []
    first, last = (16, MAX_BREADTH) if kind == "hnsw" else (1, index.nlist)
    return [*(2**power for power in range(32) if first <= 2**power < last), last]


class Searcher:
    """A faiss index, less what was removed from it.

    Args:
        index: of faiss.
        kind: of `KINDS`.
        effort: of `efforts`; None for exact.
        removed: rows that are never found.
    """

    def __init__(self, index: Any, kind: str, effort: int | None, removed: Sequence[int] = ()) -> None:
        self.index, self.kind, self.effort = index, kind, effort
        self.alive = index.ntotal - len(removed)
        self._selector: Any = None
        if removed:
            keep = np.ones(index.ntotal, dtype=bool)
            keep[list(removed)] = False
            self._bits = np.packbits(keep, bitorder="little")  # which the selector only points to
            self._selector = faiss().IDSelectorBitmap(self._bits)

    def __call__(self, queries: Vectors, k: int) -> tuple[Vectors, npt.NDArray[np.int64]]:
        """Cosines and rows of the k nearest, (n, k) each, best first; of all that are alive where those are fewer."""
        k = min(k, self.alive)
        if not len(queries) or k < 1:
            empty = np.zeros((len(queries), 0))
            return empty.astype(np.float32), empty.astype(np.int64)
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        scores, rows = self._search(queries, k)
        short = np.flatnonzero((rows < 0).any(axis=1))
        if len(short) and self.kind != "exact":
            scores[short], rows[short] = self._search_all(queries[short], k)
        return scores, rows

    def _search(self, queries: Vectors, k: int) -> tuple[Vectors, npt.NDArray[np.int64]]:
        """What is found with the effort of the index; fewer than k where the rows looked at are too few."""
        # Of the rows looked at only the living count, so more are looked at.
        effort = -(-max(self.effort or 1, k if self.kind == "hnsw" else 1) * self.index.ntotal // self.alive)
        if self.kind == "exact":
            params = faiss().SearchParameters(sel=self._selector) if self._selector else None
        elif self.kind == "hnsw":
            breadth = min(effort, max(self.index.ntotal, MAX_BREADTH))  # more finds nothing, and takes memory
            params = faiss().SearchParametersHNSW(sel=self._selector, efSearch=breadth)
        else:
            params = faiss().SearchParametersIVF(sel=self._selector, nprobe=min(effort, self.index.nlist))
        scores, rows = self.index.search(queries, k, params=params)
        return scores, rows

    def _search_all(self, queries: Vectors, k: int) -> tuple[Vectors, npt.NDArray[np.int64]]:
        """The same from all rows: every list, or the vectors that a graph stands on."""
        if self.kind == "hnsw":
            index, params = self.index.storage, faiss().SearchParameters(sel=self._selector)
        else:
            index, params = self.index, faiss().SearchParametersIVF(sel=self._selector, nprobe=self.index.nlist)
        scores, rows = index.search(queries, k, params=params)
        return scores, rows
