#!/usr/bin/env python3
"""Write the teacher's image features as small grey pictures, for systems that train an image tower.

The photos themselves are not in the data. Each of the 256 columns of a feature becomes one of 16 x 16 pixels, so that a
picture shows what the other systems of the recipe are given of a photo, and nothing more.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mclip_fairseq.cli.main import Parser, run_main
from mclip_fairseq.storage.errors import UserError

GREY = 128.0  # of a column that is 0
DEVIATIONS = 3.0  # between grey and white; what is farther out is cut off


def draw(feature: np.ndarray) -> Image.Image:
    """A picture of a feature.

    Args:
        feature: (n,) float with unit length, n a square number.
    """
    edge = math.isqrt(len(feature))
    pixels = GREY + feature.astype(np.float32) * edge * GREY / DEVIATIONS
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8).reshape(edge, edge))


def draw_all(features: Path, output: Path) -> str:
    """Write `ID.png` for every row; returns a summary for the user.

    Raises:
        UserError: the features cannot be read, or their columns make no square.
    """
    # Imports torch.
    from mclip_fairseq.storage.features import FeatureStore

    store = FeatureStore.open(features)
    if math.isqrt(store.dim) ** 2 != store.dim:
        raise UserError(f"{features}: has {store.dim} columns, which make no square; give features with 256")
    output.mkdir(parents=True, exist_ok=True)
    for name, feature in zip(store.ids, store.take(range(len(store))), strict=True):
        draw(feature).save(output / f"{name}.png")
    return f"{output}: {len(store.ids)} pictures"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", type=Path, help="feature directory of the images")
    parser.add_argument("output", type=Path, help="folder to write pictures into")
    args = parser.parse_args(argv)
    return run_main("feature_pictures.py", lambda: print(draw_all(args.features, args.output)))


if __name__ == "__main__":
    sys.exit(main())
