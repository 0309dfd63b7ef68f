"""Exact detection of repeated keys with memory that does not depend on their number."""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

WINDOW = 1 << 18
KEY = np.dtype("<u8")
ROW = np.dtype([("key", "<u8"), ("row", "<i8")])
Mask = npt.NDArray[np.bool_]


class Duplicates:
    """Finds which keys came before, on disk.

    Keys are appended to a file. `masks` scatters them by value into parts of at most about `window` keys, finds the
    repeated keys of a part in memory, and scatters their rows back into windows.

    Args:
        folder: an empty directory for temporary files, 40 bytes per key at most.
        window: keys in memory at once.
    """

    def __init__(self, folder: Path, window: int = WINDOW) -> None:
        self.folder = folder
        self.window = window
        self.count = 0
        self.keys: BinaryIO = (folder / "keys").open("wb")

    def add(self, keys: npt.NDArray[np.uint64]) -> None:
        """Add the next keys."""
        keys.astype(KEY, copy=False).tofile(self.keys)
        self.count += len(keys)

    def close(self) -> None:
        """Close the file of keys."""
        self.keys.close()

    def masks(self) -> Iterator[Mask]:
        """For each window of keys, in order: which of them came before."""
        self.keys.close()
        windows = -(-self.count // self.window)
        parts = self._scatter_keys(windows)
        self._scatter_repeated(parts)
        for number in range(windows):
            mask = np.zeros(min(self.window, self.count - number * self.window), dtype=np.bool_)
            path = self.folder / f"rows.{number}"
            if path.is_file():
                mask[np.fromfile(path, dtype=np.int64) - number * self.window] = True
                path.unlink()
            yield mask

    def _scatter_keys(self, parts: int) -> list[Path]:
        """Scatter keys and their rows into parts by value: equal keys reach the same part, in order."""
        start = 0
        with (self.folder / "keys").open("rb") as stream:
            while len(keys := np.fromfile(stream, dtype=KEY, count=self.window)):
                rows = np.empty(len(keys), dtype=ROW)
                rows["key"], rows["row"] = keys, np.arange(start, start + len(keys))
                self._append("keys", rows, keys % np.uint64(parts))
                start += len(keys)
        (self.folder / "keys").unlink()
        return [path for number in range(parts) if (path := self.folder / f"keys.{number}").is_file()]

    def _scatter_repeated(self, parts: list[Path]) -> None:
        """Find the repeated keys of every part, and scatter their rows into windows."""
        for path in parts:
            rows = np.fromfile(path, dtype=ROW)
            path.unlink()
            # The stable sort keeps the first occurrence first, so every later equal key is a repetition.
            rows = rows[np.argsort(rows["key"], kind="stable")]
            repeated = rows["row"][1:][rows["key"][1:] == rows["key"][:-1]]
            self._append("rows", repeated, repeated // self.window)

    def _append(self, name: str, values: npt.NDArray[np.generic], bucket: npt.NDArray[np.integer]) -> None:
        """Append values to the files of their buckets."""
        if not len(values):
            return
        order = np.argsort(bucket, kind="stable")
        numbers, starts = np.unique(bucket[order], return_index=True)
        for number, some in zip(numbers.tolist(), np.split(values[order], starts[1:]), strict=True):
            with (self.folder / f"{name}.{number}").open("ab") as stream:
                some.tofile(stream)
