"""Pixels of a training that decodes its images on the fly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

from PIL import Image
from torch import Tensor

from mclip_fairseq.data.skips import SkipList
from mclip_fairseq.storage.images import ImageError, load_image

BLANK = (64, 64)


class ImageSource(Protocol):
    """Where images are read from by their ids; loader processes must be able to have it."""

    def open(self, image_id: str) -> Path | BinaryIO:
        """The file of an image, or its content; an `ImageError` if there is none."""

    def place(self, image_id: str) -> str:
        """What messages call an image."""


class PixelLoader:
    """Images by their ids, decoded and prepared for the teacher. It holds no model, so loader processes can have it.

    Args:
        source: where images are read from by their ids.
        transform: RGB images -> (n, channels, height, width), the teacher's preprocessing.
        max_pixels: see `load_image`.
        skips: budget for images that cannot be read; None makes the first one an error.
    """

    def __init__(
        self,
        source: ImageSource,
        transform: Callable[[Sequence[Image.Image]], Tensor],
        max_pixels: int,
        skips: SkipList | None,
    ) -> None:
        self.source = source
        self.transform = transform
        self.max_pixels = max_pixels
        self.skips = skips

    def __call__(self, image_ids: Sequence[str]) -> tuple[list[int], Tensor]:
        """Decode images and apply the teacher's preprocessing; see `decode` and `prepare`."""
        return self.prepare(self.decode(image_ids))

    def decode(self, image_ids: Sequence[str]) -> dict[int, Image.Image]:
        """The images that can be read, by their number.

        Raises:
            UserError: an image cannot be read, and no budget is left for it.
        """
        images: dict[int, Image.Image] = {}
        lost: list[tuple[str, str]] = []
        for number, image_id in enumerate(image_ids):
            try:
                images[number] = load_image(self.source.open(image_id), self.max_pixels)
            except ImageError as error:
                if self.skips is None:
                    raise ImageError(self.source.place(image_id), error.reason) from error
                lost.append((image_id, error.reason))
        if self.skips is not None:
            self.skips.add(lost)
        return images

    def prepare(self, images: Mapping[int, Image.Image]) -> tuple[list[int], Tensor]:
        """The numbers of the images, and their (n, channels, height, width) pixels; without any, those of a blank."""
        return list(images), self.transform(list(images.values()) or [Image.new("RGB", BLANK)])
