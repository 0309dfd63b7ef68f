"""The projection beside features of the space before it: `projection.npy`, with its hash in the manifest.

Features have the space `joint`, in which cosines compare images and texts, or `pooled`: the state of a text or an
image before the model's projection. A manifest that does not say has joint features.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import first_line

SPACES = ("joint", "pooled")
PROJECTION = "projection.npy"


class Projection(NamedTuple):
    """From pooled states to the joint space.

    Attributes:
        weight: (joint dim, pooled dim) float32; no bias.
        log_scale: logarithm of the model's factor of the cosine; None if it has none.
    """

    weight: npt.NDArray[np.float32]
    log_scale: float | None

    def encoded(self) -> bytes:
        """The bytes of `projection.npy`."""
        stream = io.BytesIO()
        np.save(stream, np.ascontiguousarray(self.weight, dtype=np.float32), allow_pickle=False)
        return stream.getvalue()

    def entry(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {"file": PROJECTION, "sha256": hashlib.sha256(self.encoded()).hexdigest(), "log_scale": self.log_scale}


def check_space(manifest: Mapping[str, Any], place: Path) -> None:
    """Refuse a manifest whose space is unknown, or that has no usable projection for pooled features."""
    space, entry = manifest.get("space", "joint"), manifest.get("projection")
    usable = (
        isinstance(entry, dict)
        and entry.get("file") == PROJECTION
        and isinstance(entry.get("sha256"), str)
        and (entry.get("log_scale") is None or _is_finite(entry["log_scale"]))
    )
    if space not in SPACES or usable != (space == "pooled"):
        raise UserError(f"{place}: is damaged (space {space!r}, projection {entry!r}); make the features again")


def read_projection(folder: Path, manifest: Mapping[str, Any]) -> Projection | None:
    """The projection of a directory of pooled features; None for joint ones.

    Raises:
        UserError: the file cannot be read, or does not fit the features.
    """
    entry = manifest.get("projection")
    if entry is None:
        return None
    path = folder / PROJECTION
    try:
        weight = np.load(path, allow_pickle=False)
    except Exception as error:  # NumPy's reader raises whatever broken bytes lead it to
        raise UserError(f"{path}: cannot be read: {first_line(error)}; make the features again") from error
    if weight.dtype != np.float32 or weight.ndim != 2 or weight.shape[1] != manifest["dim"] or not len(weight):
        raise UserError(
            f"{path}: holds {weight.dtype} of shape {weight.shape}, but projects features of {manifest['dim']} "
            "columns; make the features again"
        )
    return Projection(weight, entry["log_scale"])


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
