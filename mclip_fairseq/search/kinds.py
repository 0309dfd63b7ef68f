"""The kinds of faiss index: how each is made, read and searched."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mclip_fairseq.search.engine import Vectors
from mclip_fairseq.search.ivf_header import check_lists
from mclip_fairseq.search.settings import (
    IVF_KINDS,
    PQ_CENTROIDS,
    IndexSettings,
    default_code_bytes,
    default_lists,
)
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.extras import import_extra
from mclip_fairseq.storage.files import file_sha256
from mclip_fairseq.storage.owners import own_name

# Kind -> faiss's description of it.
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
# The first four bytes of the files of these classes: no other file is handed to faiss.
MAGIC = {"exact": b"IxFI", "ivf": b"IwFl", "hnsw": b"IHNf", "sq8": b"IwSq", "pq": b"IwPQ"}
HNSW_LINKS = 32
MAX_BREADTH = 1024  # the widest walk that tuning tries, short of all rows
PQ_ROUNDS = 8  # faiss's default is 25: the codes are hardly worse, and training is most of the build
TRAINING_PER_LIST = 48  # faiss warns below 39


def faiss() -> Any:
    """The faiss package, imported when first used.

    Raises:
        UserError: it is not installed.
    """
    return import_extra("faiss", "search")


def factory_string(settings: IndexSettings, dim: int, count: int) -> str:
    """Faiss's description of an index for `count` vectors of `dim` columns."""
    lists, code_bytes = settings.lists or default_lists(count), settings.code_bytes or default_code_bytes(dim)
    return FACTORIES[settings.kind].format(lists=lists, links=HNSW_LINKS, bytes=code_bytes)


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
    """An index without the rows that are not kept; the others are renumbered in their order.

    Args:
        index: of faiss; may be changed in place.
        kind: of `KINDS`.
        factory: faiss's description.
        keep: one value per row.
    """
    if kind == "exact":
        index.remove_ids(np.flatnonzero(~keep))
        return index
    if kind == "hnsw":  # nodes cannot be removed from a graph, so it is built again
        rebuilt = new_index(factory, index.d)
        rebuilt.add(index.storage.reconstruct_batch(np.flatnonzero(keep)))
        return rebuilt
    rebuilt, numbers, lists = faiss().clone_index(index), np.cumsum(keep) - 1, index.invlists
    rebuilt.reset()
    for number in filter(lists.list_size, range(index.nlist)):
        size = lists.list_size(number)
        ids = faiss().rev_swig_ptr(lists.get_ids(number), size)
        codes = faiss().rev_swig_ptr(lists.get_codes(number), size * lists.code_size).reshape(size, -1)
        kept = keep[ids]
        if kept.any():  # both arrays need a name, because faiss is given only their addresses
            ids, codes = np.ascontiguousarray(numbers[ids[kept]]), np.ascontiguousarray(codes[kept])
            rebuilt.invlists.add_entries(number, len(ids), faiss().swig_ptr(ids), faiss().swig_ptr(codes))
    rebuilt.ntotal = int(keep.sum())
    return rebuilt


def write_index(index: Any, path: Path) -> dict[str, str]:
    """Write an index completely or not at all; returns its entry of the manifest.

    Raises:
        UserError: the disk is full.
    """
    temporary = own_name(path)
    try:
        faiss().write_index(index, str(temporary))
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        entry = {"file": path.name, "sha256": file_sha256(temporary)}
        os.replace(temporary, path)
    except RuntimeError as error:
        raise UserError(f"{path}: cannot be written; free disk space and run the command again") from error
    finally:
        temporary.unlink(missing_ok=True)
    return entry


def read_index(path: Path, kind: str, dim: int, rows: int, writable: bool = False) -> Any:
    """Read a faiss index of an expected kind; without `writable`, exact and hnsw vectors stay on the disk.

    The hash in the manifest says that the file is the one that was published with it, not that its author is honest:
    faiss allocates what a file claims and follows paths in it, so the claims are checked before and after.

    Args:
        path: the file.
        kind: of `KINDS`.
        dim: columns that it must have.
        rows: vectors that it must have.
        writable: whether vectors will be added.

    Raises:
        UserError: a different kind of file, a damaged one, or one that does not fit.
    """
    with path.open("rb") as stream:
        magic = stream.read(4)
    if magic != MAGIC[kind]:
        raise UserError(f"{path}: is not a faiss index of the kind {kind!r}; build the index again")
    if kind in IVF_KINDS:
        check_lists(path)
    # No array can be larger than the file that holds it.
    faiss().set_deserialization_vector_byte_limit(max(2 * path.stat().st_size, 1 << 20))
    try:
        # The precomputed table is only used for distances, not for cosines, and may be larger than the file.
        flags = faiss().IO_FLAG_SKIP_PRECOMPUTE_TABLE | (0 if writable else faiss().IO_FLAG_MMAP_IFC)
        index = faiss().read_index(str(path), flags)
    except (RuntimeError, MemoryError) as error:  # what faiss raises for a damaged file
        raise UserError(f"{path}: is not a readable faiss index; build the index again") from error
    expected = (CLASSES[kind], dim, rows, faiss().METRIC_INNER_PRODUCT)
    if (type(index).__name__, index.d, index.ntotal, index.metric_type) != expected or _has_foreign_lists(index):
        raise UserError(
            f"{path}: holds {index.ntotal} vectors of {index.d} dimensions in a {type(index).__name__}, but {rows} "
            f"of {dim} in a {CLASSES[kind]} are expected; build the index again"
        )
    if kind in IVF_KINDS and (number := _list_with_bad_row(index)) is not None:
        raise UserError(f"{path}: list {number} names a row beyond its {index.ntotal}; build the index again")
    return index


def _list_with_bad_row(index: Any) -> int | None:
    """The first list that names a row that does not exist; None where all rows exist."""
    lists = index.invlists
    for number in filter(lists.list_size, range(index.nlist)):
        ids = faiss().rev_swig_ptr(lists.get_ids(number), lists.list_size(number))
        if ids.min() < 0 or ids.max() >= index.ntotal:
            return number
    return None


def _has_foreign_lists(index: Any) -> bool:
    """Whether inverted lists are in another file, which the index would open."""
    lists = getattr(index, "invlists", None)
    return lists is not None and not isinstance(faiss().downcast_InvertedLists(lists), faiss().ArrayInvertedLists)


def efforts(kind: str, index: Any) -> list[int]:
    """Efforts to try, cheapest first: number of lists searched (ivf kinds), or breadth of the walk (hnsw)."""
    if kind == "exact":
        return []
    return powers(16, MAX_BREADTH) if kind == "hnsw" else powers(1, index.nlist)


def powers(first: int, last: int) -> list[int]:
    """The powers of two from `first` up to `last`, and `last` itself."""
    return [*(2**power for power in range(32) if first <= 2**power < last), last]


class Searcher:
    """A faiss index without its removed rows.

    Args:
        index: of faiss.
        kind: of `KINDS`.
        effort: of `efforts`; None for exact.
        removed: rows that are never returned.
    """

    def __init__(self, index: Any, kind: str, effort: int | None, removed: Sequence[int] = ()) -> None:
        self.index, self.kind, self.effort = index, kind, effort
        self.alive = index.ntotal - len(removed)
        self._selector: Any = None
        if removed:
            keep = np.ones(index.ntotal, dtype=bool)
            keep[list(removed)] = False
            self._bits = np.packbits(keep, bitorder="little")  # kept alive: the selector only points to it
            self._selector = faiss().IDSelectorBitmap(self._bits)

    def __call__(self, queries: Vectors, k: int) -> tuple[Vectors, npt.NDArray[np.int64]]:
        """Cosines and rows of the k nearest, (n, k) each, best first; all remaining rows if fewer than k are left."""
        k = min(k, self.alive)
        if not len(queries) or k < 1:
            empty = np.zeros((len(queries), 0))
            return empty.astype(np.float32), empty.astype(np.int64)
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        scores, rows = self._search(queries, k)
        # Removals can empty the lists or the part of the graph near a query.
        short = np.flatnonzero((rows < 0).any(axis=1))
        if len(short) and self.kind != "exact":
            scores[short], rows[short] = self._search_all(queries[short], k)
        return scores, rows

    def vectors(self, rows: Sequence[int]) -> Vectors | None:
        """(n, dim) stored vectors; None for the kinds that keep no exact ones, or none by row."""
        if self.kind not in ("exact", "hnsw"):
            return None
        stored: Vectors = np.stack([self.index.reconstruct(int(row)) for row in rows])
        return stored

    def _search(self, queries: Vectors, k: int) -> tuple[Vectors, npt.NDArray[np.int64]]:
        """Search with the index's effort; a row is -1 where fewer than k were reached."""
        # Removed rows are visited too, so the effort grows with their share.
        effort = -(-max(self.effort or 1, k if self.kind == "hnsw" else 1) * self.index.ntotal // self.alive)
        if self.kind == "exact":
            params = faiss().SearchParameters(sel=self._selector) if self._selector else None
        elif self.kind == "hnsw":
            breadth = min(effort, max(self.index.ntotal, MAX_BREADTH))  # a wider walk finds no more and takes memory
            params = faiss().SearchParametersHNSW(sel=self._selector, efSearch=breadth)
        else:
            params = faiss().SearchParametersIVF(sel=self._selector, nprobe=min(effort, self.index.nlist))
        scores, rows = self.index.search(queries, k, params=params)
        return scores, rows

    def _search_all(self, queries: Vectors, k: int) -> tuple[Vectors, npt.NDArray[np.int64]]:
        """Search all rows: every list, or the vectors below a graph."""
        if self.kind == "hnsw":
            index, params = self.index.storage, faiss().SearchParameters(sel=self._selector)
        else:
            index, params = self.index, faiss().SearchParametersIVF(sel=self._selector, nprobe=self.index.nlist)
        scores, rows = index.search(queries, k, params=params)
        return scores, rows
