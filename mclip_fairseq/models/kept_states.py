"""Cached states of a frozen text encoder in the memory of the device that trains: batches bring their places alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mclip_fairseq.storage.errors import UserError

BLOCK = 2**16  # states that are copied at once


class KeptStates:
    """The states of some files, back to back; no part of the model's own state.

    They are copied to the device of the first batch, when all files are known.
    """

    def __init__(self) -> None:
        self.arrays: list[npt.NDArray[np.floating[Any]]] = []
        self.starts: dict[str, int] = {}
        self.rows: Tensor | None = None

    def add(self, name: str, values: npt.NDArray[np.floating[Any]]) -> int:
        """Take in a file, unless it is known; returns the place of its first state.

        Args:
            name: of the file.
            values: (states, dim), of one width and type in all files.
        """
        if name not in self.starts:
            self.starts[name] = sum(map(len, self.arrays))
            self.arrays.append(values)
            self.rows = None
        return self.starts[name]

    def at(self, places: Tensor) -> Tensor:
        """(states,) int64 places on the device -> (states, dim) in the stored type."""
        if self.rows is None or self.rows.device != places.device:
            self.rows = self._copied(places.device)
        return self.rows.index_select(0, places)

    def _copied(self, device: torch.device) -> Tensor:
        shape = (sum(map(len, self.arrays)), self.arrays[0].shape[1])
        try:
            rows = torch.empty(shape, dtype=getattr(torch, str(self.arrays[0].dtype)), device=device)
        except torch.OutOfMemoryError as error:
            size = sum(array.nbytes for array in self.arrays) / 2**30
            raise UserError(
                f"--keep-text-states: {device} has no room for {size:.1f} GiB of states; leave it out, or store them "
                "with --text-state-dtype float16"
            ) from error
        begin = 0
        for array in self.arrays:
            for start in range(0, len(array), BLOCK):
                block = np.array(array[start : start + BLOCK])
                rows[begin : begin + len(block)] = torch.from_numpy(block)
                begin += len(block)
        return rows
