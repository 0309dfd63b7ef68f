"""The `.bin/.idx` pairs of `fairseq-preprocess`, checked before a token is used: nothing in them is taken on trust."""

import mmap
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from fairseq.data.indexed_dataset import IndexedDataset

from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import expecting

MMAP_MAGIC, LEGACY_MAGIC = b"MMIDIDX\x00\x00", b"TNTIDX\x00\x00"
HEADER = struct.Struct("<9sQBQ")
# fairseq's codes of integer types; its others are no token ids.
DTYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16, 9: np.uint32, 10: np.uint64}
REMAKE = "make it again with fairseq-preprocess"
Flat = tuple[npt.NDArray[np.integer], npt.NDArray[np.integer]]


class MappedValues:
    """What other processes get without its `values`, where these are a mapped file: they map it themselves.

    Loader processes of a spawned rank receive the data by pickling.
    """

    values: npt.NDArray[Any]

    def __getstate__(self) -> dict[str, Any]:
        """All attributes, with the place of mapped values in place of them."""
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


def read_indexed(prefix: str | Path) -> Flat:
    """All sentences back to back, and the tokens of each.

    Args:
        prefix: path without the suffix. Both formats of fairseq-preprocess are read, `mmap` without copying.

    Raises:
        UserError: a file is missing, damaged, or of another format.
    """
    index, data = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
    if not (index.is_file() and data.is_file()):
        raise UserError(f"{prefix}.bin/.idx: not found; make them with fairseq-preprocess")
    with index.open("rb") as stream:
        magic = stream.read(len(MMAP_MAGIC))
    if magic == MMAP_MAGIC:
        return _read_mmap(index, data)
    if magic.startswith(LEGACY_MAGIC):
        return _read_legacy(prefix, index)
    raise UserError(f"{index}: is no index of fairseq-preprocess; {REMAKE}")


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


def _read_legacy(prefix: str | Path, index: Path) -> Flat:
    """`--dataset-impl cached` or `lazy`: read as a whole, by fairseq."""
    with index.open("rb") as stream:
        stream.seek(32)  # two counts, and three tables of as many numbers follow
        rows, sizes_count = struct.unpack("<QQ", stream.read(16).ljust(16, b"\0"))
    if index.stat().st_size != 48 + 8 * (2 * (rows + 1) + sizes_count):
        raise UserError(f"{index}: is truncated or damaged; {REMAKE}")
    with expecting(index, "an index of fairseq-preprocess"):
        dataset = IndexedDataset(str(prefix), fix_lua_indexing=True)
        sizes = np.asarray(dataset.sizes)
        places = np.concatenate([[0], np.cumsum(sizes)])
        stored = Path(f"{prefix}.bin").stat().st_size
        if not (
            np.array_equal(dataset.dim_offsets, np.arange(len(sizes) + 1))
            and np.array_equal(dataset.data_offsets, places)
            and (len(sizes) == 0 or 1 <= sizes.min() <= sizes.max() <= stored)
            and int(places[-1]) * int(dataset.element_size) == stored
            and np.dtype(dataset.dtype).itemsize == dataset.element_size
        ):
            raise UserError(f"{index}: does not describe the sentences of its .bin file; {REMAKE}")
        rows = [dataset[number].numpy() for number in range(len(dataset))]
    return np.concatenate(rows) if rows else np.zeros(0, np.int64), sizes
