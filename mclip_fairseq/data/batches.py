"""What a part of a sampled dataset offers: lengths, and a batch for any set of rows."""

from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt


class RowDataset(Protocol):
    """A part of a `TemperatureSampledDataset`."""

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """(rows,) lengths, or (rows, 2) source and target lengths."""

    def __len__(self) -> int: ...

    def rows(self, rows: npt.NDArray[np.int64]) -> dict[str, Any]:
        """The batch of these rows, built without a loop over them."""


@runtime_checkable
class Redrawn(Protocol):
    """A part, or something in it, that has new draws in every epoch: words to mask, crops of images."""

    def set_epoch(self, epoch: int) -> None:
        """Change the draws."""
