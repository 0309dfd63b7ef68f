"""What a part of a sampled dataset offers: lengths, and a batch for any set of rows."""

from typing import Any, Protocol

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
