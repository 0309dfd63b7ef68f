"""Checksums by which a checkpoint notices that data have changed."""

import zlib
from collections.abc import Iterable
from functools import reduce
from typing import Any

import numpy as np


def checksum(blocks: Iterable[bytes]) -> int:
    """CRC-32 of blocks of bytes, one after the other."""
    return reduce(lambda crc, block: zlib.crc32(block, crc), blocks, 0)


def lengths(part: Any) -> bytes:
    """The lengths of a dataset's samples, as int64."""
    return np.ascontiguousarray(part.sizes, np.int64).tobytes()
