"""How many lists a faiss file of the ivf kinds claims, told before faiss takes memory for them."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

from mclip_fairseq.storage.errors import UserError

INDEX = struct.Struct("<4siqqq?i")  # magic, columns, vectors, two of no use, whether it is trained, metric
COUNT = struct.Struct("<Q")
QUANTIZER, LISTS = b"IxFI", b"ilar"
INNER_PRODUCT = 0
# Magic -> bytes before the list of numbers that was trained, and behind it.
TRAINED = {b"IwSq": (28, 9), b"IwPQ": (33, 0)}


def check_lists(path: Path) -> None:
    """Refuse more lists than the file has centres, of which it holds every number.

    Args:
        path: an index of the class IVFFlat, IVFScalarQuantizer or IVFPQ.

    Raises:
        UserError: the file claims more, or is of another form.
    """
    with path.open("rb") as stream:
        try:
            claimed, centres, stored = read_counts(stream)
        except (struct.error, ValueError, OverflowError) as error:
            raise UserError(f"{path}: is not a faiss index that can be read; build the index again") from error
    if not claimed == centres == stored:
        raise UserError(
            f"{path}: claims {claimed} and {stored} lists, but has {centres} centres; build the index again"
        )


def read_counts(stream: BinaryIO) -> tuple[int, int, int]:
    """Lists by the index, centres, and lists by the part that stores them.

    Raises:
        struct.error, ValueError, OverflowError: the file is of another form.
    """
    magic, dim, *_, metric = unpack(stream, INDEX)
    (lists,), _ = unpack(stream, COUNT), unpack(stream, COUNT)
    quantizer, columns, *_, other = unpack(stream, INDEX)
    values = skip_array(stream, 4)
    direct = stream.read(1)
    skip_array(stream, 8)
    if magic in TRAINED:
        before, behind = TRAINED[magic]
        skip(stream, before)
        skip_array(stream, 4)
        skip(stream, behind)
    if (quantizer, metric, other) != (QUANTIZER, INNER_PRODUCT, INNER_PRODUCT) or direct != b"\0" or dim < 1:
        raise UserError("another form of index")
    if stream.read(4) != LISTS or columns != dim or values % dim:
        raise UserError("another form of lists")
    return lists, values // dim, unpack(stream, COUNT)[0]


def unpack(stream: BinaryIO, form: struct.Struct) -> tuple[Any, ...]:
    """The next values of a file."""
    return form.unpack(stream.read(form.size))


def skip_array(stream: BinaryIO, width: int) -> int:
    """Pass an array that begins with its length; returns that."""
    (length,) = unpack(stream, COUNT)
    skip(stream, length * width)
    return length


def skip(stream: BinaryIO, size: int) -> None:
    """Pass so many bytes.

    Raises:
        UserError: the file has not so many.
    """
    if stream.tell() + size > os.fstat(stream.fileno()).st_size:
        raise UserError("ends early")
    stream.seek(size, os.SEEK_CUR)
