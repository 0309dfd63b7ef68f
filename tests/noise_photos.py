"""Images of noise, every second one in a folder with a space in its name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_photos(root: Path, number: int, height: int = 30, width: int = 44) -> Path:
    """Write images of different heights; returns their folder."""
    generator = np.random.default_rng(0)
    for row in range(number):
        path = root / ("a b" if row % 2 else "") / f"{row:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (height + row, width, 3), dtype=np.uint8)).save(path)
    return root
