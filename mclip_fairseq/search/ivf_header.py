"""The number of lists that a faiss file of the ivf kinds claims, read before faiss allocates memory for them."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

from mclip_fairseq.storage.errors import UserError

# faiss writes these fields in this order, without padding or alignment.
INDEX = struct.Struct("<4siqqq?i")  # magic, columns, vectors, two unused, whether it is trained, metric
COUNT = struct.Struct("<Q")
BYTE = struct.Struct("<c")
LISTS = struct.Struct("<4sQ")  # magic, number of lists
INNER_PRODUCT = 0
FLOAT, ID = 4, 8  # bytes of a centre's value and of a row number
# Magic of an index -> bytes before and after its array of trained numbers.
TRAINED = {b"IwSq": (28, 9), b"IwPQ": (33, 0)}


class Cursor:
    """Reads one field after another; at the end of the content, `unpack` raises struct.error.

    Args:
        content: of the file.
    """

    def __init__(self, content: mmap.mmap) -> None:
        self.content, self.position = content, 0

    def unpack(self, form: struct.Struct) -> tuple[Any, ...]:
        """The next values."""
        values = form.unpack(self.content[self.position : self.position + form.size])
        self.position += form.size
        return values

    def skip(self, size: int) -> None:
        """Skip `size` bytes; the position may then be past the end."""
        self.position += size

    def skip_array(self, width: int) -> int:
        """Skip an array of items of `width` bytes; returns its length, which is stored before it."""
        (length,) = self.unpack(COUNT)
        self.skip(length * width)
        return int(length)


def check_lists(path: Path) -> None:
    """Check that a file claims as many lists as it has centres, all of which it must hold.

    A file of a few bytes can claim billions of lists, and faiss would allocate memory for them; centres are real data.

    Args:
        path: a non-empty index of the class IVFFlat, IVFScalarQuantizer or IVFPQ.

    Raises:
        UserError: the counts differ, or the file has another layout.
    """
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        try:
            counts = read_counts(Cursor(content))
        except struct.error:  # it ends early
            counts = None
    if counts is None:
        raise UserError(f"{path}: is not a readable faiss index; build the index again")
    claimed, centres, stored = counts
    if not claimed == centres == stored:
        raise UserError(
            f"{path}: claims {claimed} and {stored} lists, but has {centres} centres; build the index again"
        )


def read_counts(cursor: Cursor) -> tuple[int, int, int] | None:
    """Number of lists by the index's header, number of centres, and number of lists by the inverted lists' header.

    None where the file has another layout.

    Raises:
        struct.error: the file ends early.
    """
    magic, dim, *_, metric = cursor.unpack(INDEX)
    (claimed,) = cursor.unpack(COUNT)
    cursor.skip(COUNT.size)  # lists searched by default
    quantizer, columns, *_, quantizer_metric = cursor.unpack(INDEX)
    values = cursor.skip_array(FLOAT)
    (direct_map,) = cursor.unpack(BYTE)
    cursor.skip_array(ID)
    if magic in TRAINED:
        before, after = TRAINED[magic]
        cursor.skip(before)
        cursor.skip_array(FLOAT)
        cursor.skip(after)
    lists_magic, stored = cursor.unpack(LISTS)
    layout = (quantizer, metric, quantizer_metric, direct_map, lists_magic, columns)
    if layout != (b"IxFI", INNER_PRODUCT, INNER_PRODUCT, b"\0", b"ilar", dim) or dim < 1 or values % dim:
        return None
    return claimed, values // dim, stored
