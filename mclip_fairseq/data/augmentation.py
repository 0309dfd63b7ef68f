"""Random crops, flips and RandAugment with Pillow, as CCRK trains its image tower (torchvision is not needed)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from mclip_fairseq.data.columns import PixelColumn, Rows
from mclip_fairseq.data.pixels import PixelLoader

GREY = (128, 128, 128)
LEVELS = 10
# At the highest level: the change of an enhancement factor, a shear, pixels of a shift, degrees of a rotation.
ENHANCE, SHEAR, SHIFT, ROTATE = 1.8, 0.3, 10.0, 30.0
LEAST_ENHANCE = 0.1
RATIOS = (3 / 4, 4 / 3)
TRIES = 10


@dataclass(frozen=True)
class Augmentation:
    """Settings of the augmentation.

    Attributes:
        size: pixels along an edge of the crop.
        least_area: of the image that a crop shows; 1 at most.
        operations: of RandAugment, drawn with replacement; each is then applied with probability 1/2.
        level: of RandAugment, from 0 to 10.
    """

    size: int
    least_area: float
    operations: int = 2
    level: int = 7

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """A random crop, flipped half the time, changed by some operations.

        Args:
            image: RGB.
            rng: draws; the same state gives the same image.

        Returns:
            (size, size) RGB.
        """
        box = random_crop(image.width, image.height, self.least_area, rng)
        image = image.resize((self.size, self.size), Image.Resampling.BICUBIC, box=box)
        if rng.random() < 0.5:
            image = ImageOps.mirror(image)
        for number in rng.integers(0, len(OPERATIONS), self.operations).tolist():
            sign = 1 if rng.random() < 0.5 else -1
            if rng.random() < 0.5:
                image = OPERATIONS[number](image, sign * self.level / LEVELS)
        return image


def random_crop(width: int, height: int, least_area: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """A box of random area and aspect ratio (Szegedy et al. 2015); the central one where none fits.

    Args:
        width: of the image.
        height: of the image.
        least_area: share of the image that the box shows at least.
        rng: draws.

    Returns:
        left, top, right, bottom.
    """
    for _ in range(TRIES):
        area = width * height * rng.uniform(least_area, 1.0)
        ratio = np.exp(rng.uniform(np.log(RATIOS[0]), np.log(RATIOS[1])))
        across, down = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < across <= width and 0 < down <= height:
            left, top = int(rng.integers(0, width - across + 1)), int(rng.integers(0, height - down + 1))
            return left, top, left + across, top + down
    across = min(width, max(1, round(height * RATIOS[1])))
    down = min(height, max(1, round(width / RATIOS[0])))
    left, top = (width - across) // 2, (height - down) // 2
    return left, top, left + across, top + down


def _moved(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR, fillcolor=GREY
    )


def _rotated(image: Image.Image, amount: float) -> Image.Image:
    return image.rotate(amount * ROTATE, resample=Image.Resampling.BILINEAR, fillcolor=GREY)


# Each takes an RGB image and an amount from -1 to 1; where a sign has no meaning it is left out.
OPERATIONS: tuple[Callable[[Image.Image, float], Image.Image], ...] = (
    lambda image, amount: image,
    lambda image, amount: ImageOps.autocontrast(image),
    lambda image, amount: ImageOps.equalize(image),
    lambda image, amount: ImageEnhance.Brightness(image).enhance(LEAST_ENHANCE + abs(amount) * ENHANCE),
    lambda image, amount: ImageEnhance.Sharpness(image).enhance(LEAST_ENHANCE + abs(amount) * ENHANCE),
    lambda image, amount: _moved(image, (1, amount * SHEAR, 0, 0, 1, 0)),
    lambda image, amount: _moved(image, (1, 0, 0, amount * SHEAR, 1, 0)),
    lambda image, amount: _moved(image, (1, 0, amount * SHIFT, 0, 1, 0)),
    lambda image, amount: _moved(image, (1, 0, 0, 0, 1, amount * SHIFT)),
    _rotated,
)


class AugmentedPixels(PixelColumn):
    """Images that are decoded and augmented for each batch, by draws of (seed, epoch, row) alone.

    Neither the batch nor the loader process decides what a row looks like, so a resumed run sees what it would have.

    Args:
        ids: image id of each caption.
        loader: decodes, and prepares what comes out of the augmentation.
        augmentation: settings.
        seed: of the draws.
    """

    def __init__(self, ids: Sequence[str], loader: PixelLoader, augmentation: Augmentation, seed: int) -> None:
        super().__init__(ids, loader)
        self.loader = loader
        self.augmentation = augmentation
        self.seed = seed
        self.epoch = 1

    def set_epoch(self, epoch: int) -> None:
        """Change the draws."""
        self.epoch = epoch

    def read(self, rows: Rows) -> tuple[list[int], Tensor]:
        """See `PixelColumn.read`."""
        images = self.loader.decode(self.ids[rows].tolist())
        changed = {
            number: self.augmentation(image, np.random.default_rng([self.seed, self.epoch, int(rows[number])]))
            for number, image in images.items()
        }
        return self.loader.prepare(changed)
