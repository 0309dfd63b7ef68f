"""The `.bin/.idx` pairs of `fairseq-preprocess`: written, and checked completely before a token is used."""

import mmap
import struct
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mclip_fairseq.storage.errors import UserError

MMAP_MAGIC, LEGACY_MAGIC = b"MMIDIDX\x00\x00", b"TNTIDX\x00\x00"
HEADER = struct.Struct("<9sQBQ")
# Magic, version, code of the type, bytes of an element, rows, and number of sizes.
LEGACY_HEADER = struct.Struct("<8s5Q")
# fairseq's codes of integer types; its other types cannot hold token ids.
DTYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16, 9: np.uint32, 10: np.uint64}
REMAKE = "make it again with fairseq-preprocess"
Flat = tuple[npt.NDArray[np.integer], npt.NDArray[np.integer]]


class MappedValues:
    """Pickles without its `values` where these are a mapped file: the receiving process maps it again.

    Loader processes of a spawned rank receive the data by pickling.
    """

    values: npt.NDArray[Any]

    def __getstate__(self) -> dict[str, Any]:
        """All attributes, with the place of mapped values instead of the values."""
        state, values = self.__dict__.copy(), self.values
        base: Any = values.base
        if isinstance(values, np.memmap) and isinstance(base, mmap.mmap):
            state["values"] = (values.filename, values.dtype, "r", values.offset, values.shape)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Map the values again."""
        place = state["values"]
        self.__dict__.update(state)
        if isinstance(place, tuple):
            self.values = np.memmap(*place)


def fitting_dtype(entries: int) -> npt.DTypeLike:
    """The type in which `fairseq-preprocess` stores the ids of a dictionary with this many entries."""
    return np.uint16 if entries < 65500 else np.uint32


def flat_ids(sentences: Sequence[Sequence[int]], dtype: npt.DTypeLike) -> Flat:
    """Ids of sentences, back to back, and the tokens of each."""
    sizes = np.fromiter(map(len, sentences), np.int32, len(sentences))
    return np.fromiter(chain.from_iterable(sentences), dtype, int(sizes.sum())), sizes


def write_indexed(prefix: str | Path, chunks: Iterable[Flat], dtype: npt.DTypeLike) -> int:
    """Write sentences in the format `mmap`; returns how many there are.

    Args:
        prefix: path without the suffix.
        chunks: ids of consecutive sentences back to back, and the tokens of each.
        dtype: of the stored ids.
    """
    sizes: list[npt.NDArray[np.integer]] = [np.zeros(0, np.int32)]
    with Path(f"{prefix}.bin").open("wb") as data:
        for values, some in chunks:
            data.write(values.astype(dtype, copy=False).tobytes())
            sizes.append(some)
    lengths = np.concatenate(sizes).astype("<i4")
    starts = (np.cumsum(lengths, dtype="<i8") - lengths) * np.dtype(dtype).itemsize
    code = next(code for code, known in DTYPES.items() if known == dtype)
    header = HEADER.pack(MMAP_MAGIC, 1, code, len(lengths))
    Path(f"{prefix}.idx").write_bytes(header + lengths.tobytes() + starts.tobytes())
    return len(lengths)


def read_indexed(prefix: str | Path) -> Flat:
    """All sentences back to back, and the tokens of each.

    Args:
        prefix: path without the suffix. Both formats of fairseq-preprocess are read, `mmap` without copying.

    Raises:
        UserError: a file is missing, damaged, or has a different format.
    """
    index, data = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
    if not (index.is_file() and data.is_file()):
        raise UserError(f"{prefix}.bin/.idx: not found; make them with fairseq-preprocess")
    with index.open("rb") as stream:
        magic = stream.read(len(MMAP_MAGIC))
    if magic == MMAP_MAGIC:
        return _read_mmap(index, data)
    if magic.startswith(LEGACY_MAGIC):
        return _read_legacy(index, data)
    raise UserError(f"{index}: is not an index of fairseq-preprocess; {REMAKE}")


def _read_mmap(index: Path, data: Path) -> Flat:
    content = index.read_bytes()
    if len(content) < HEADER.size:
        raise UserError(f"{index}: is truncated; {REMAKE}")
    _, version, code, count = HEADER.unpack_from(content)
    if version != 1 or code not in DTYPES or len(content) != HEADER.size + 12 * count:
        raise UserError(f"{index}: is truncated or damaged; {REMAKE}")
    dtype = np.dtype(DTYPES[code])
    sizes = np.frombuffer(content, dtype="<i4", count=count, offset=HEADER.size)
    starts = np.frombuffer(content, dtype="<i8", count=count, offset=HEADER.size + 4 * count)
    ends = np.cumsum(sizes, dtype=np.int64) * dtype.itemsize
    if count and (sizes.min() < 1 or starts[0] != 0 or not np.array_equal(starts[1:], ends[:-1])):
        raise UserError(f"{index}: its sentences are not stored one after the other; {REMAKE}")
    total = int(ends[-1]) if count else 0
    if data.stat().st_size != total:
        raise UserError(f"{data}: has {data.stat().st_size} bytes where {index.name} counts {total}; {REMAKE}")
    if not count:
        return np.zeros(0, dtype), sizes
    return np.memmap(data, dtype=dtype, mode="r", shape=(total // dtype.itemsize,)), sizes


def _read_legacy(index: Path, data: Path) -> Flat:
    """The formats of `--dataset-impl cached` and `lazy`, read completely; they store each token id plus 1."""
    content = index.read_bytes()
    if len(content) < LEGACY_HEADER.size:
        raise UserError(f"{index}: is truncated or damaged; {REMAKE}")
    _, version, code, element_size, rows, sizes_count = LEGACY_HEADER.unpack_from(content)
    if len(content) != LEGACY_HEADER.size + 8 * (2 * (rows + 1) + sizes_count):
        raise UserError(f"{index}: is truncated or damaged; {REMAKE}")
    if version != 1 or code not in DTYPES or np.dtype(DTYPES[code]).itemsize != element_size:
        raise UserError(f"{index}: is not an index of fairseq-preprocess, or is damaged; {REMAKE}")
    table = np.frombuffer(content, dtype="<i8", offset=LEGACY_HEADER.size)
    # A row may have several sizes, one per dimension; sentences have one.
    dim_offsets, data_offsets, sizes = np.split(table, [rows + 1, 2 * (rows + 1)])
    stored = data.stat().st_size
    if not (
        np.array_equal(dim_offsets, np.arange(len(sizes) + 1))
        and (len(sizes) == 0 or 1 <= sizes.min() <= sizes.max() <= stored)
        and np.array_equal(data_offsets, np.concatenate([[0], np.cumsum(sizes)]))
        and int(data_offsets[-1]) * element_size == stored
    ):
        raise UserError(f"{index}: does not describe the sentences of its .bin file; {REMAKE}")
    return np.fromfile(data, dtype=DTYPES[code]).astype(np.int64) - 1, sizes
