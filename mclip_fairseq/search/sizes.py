"""How many bytes and machines an index takes, for planning; light, because nothing is opened."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mclip_fairseq.search.settings import DATABASE_KINDS, IVF_KINDS, KINDS, default_code_bytes

FLOAT_BYTES, ID_BYTES, LINK_BYTES = 4, 8, 4
GRAPH_LINKS = 64  # of a vector in the lowest layer of hnsw: twice the 32 of an upper layer, into which few vectors go
DISK_LINKS = 56  # of a vector in Milvus's DiskANN
DISK_CODES = 0.125  # share of the vectors that DiskANN holds in memory, as codes
USABLE = 0.7  # share of a machine's memory: the rest is for the system, queries and parts that are being rewritten
GIB = 2**30


@dataclass(frozen=True)
class Size:
    """What an index takes.

    Attributes:
        memory: bytes per vector in memory.
        disk: bytes per vector on the disk, without the names of the images.
    """

    memory: float
    disk: float


def size_of(kind: str, dim: int) -> Size:
    """The size of one vector of `dim` columns in an index of a kind."""
    full = FLOAT_BYTES * dim
    if kind == "diskann":
        return Size(DISK_CODES * full, full + LINK_BYTES * DISK_LINKS + DISK_CODES * full)
    code = {"sq8": dim, "pq": default_code_bytes(dim)}.get(kind, full)
    extra = ID_BYTES if kind in IVF_KINDS else LINK_BYTES * GRAPH_LINKS if kind == "hnsw" else 0
    return Size(code + extra, code + extra)


def machines(size: Size, vectors: int, gib: float) -> int:
    """Machines with `gib` of memory each that hold this many vectors."""
    return math.ceil(vectors * size.memory / (USABLE * gib * GIB))


def table(vectors: Sequence[int], dims: Sequence[int], gib: float) -> str:
    """A Markdown table of sizes.

    Args:
        vectors: numbers of images.
        dims: columns of the model's vectors.
        gib: memory of a machine.
    """
    lines = [
        f"| vectors | dimensions | kind | memory, GiB | disk, GiB | machines of {gib:g} GiB |",
        "| ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    for count in vectors:
        for dim in dims:
            for kind in (*KINDS, *DATABASE_KINDS):
                size = size_of(kind, dim)
                memory, disk = (f"{count * each / GIB:,.1f}" for each in (size.memory, size.disk))
                lines.append(f"| {count:,} | {dim} | `{kind}` | {memory} | {disk} | {machines(size, count, gib)} |")
    return "\n".join(lines)
