"""The usual image preprocessing of dual encoders without the arithmetic that `transformers` repeats for each pixel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

# Wide, tall, square, enlarged and of odd sizes: a rounding or an offset that differs shows in one of them.
PROBES = ((640, 480), (333, 500), (301, 301), (61, 64), (1000, 230), (227, 449))


class FastTransform:
    """Resize, crop, and a table of what becomes of each of the 256 values of each channel.

    Args:
        size: (height, width) after the resize, or an int for the shortest edge.
        crop: (height, width) of the centre, or None.
        resample: Pillow's filter.
        table: (channels, 256) float32.
    """

    def __init__(
        self,
        size: int | tuple[int, int],
        crop: tuple[int, int] | None,
        resample: Image.Resampling,
        table: npt.NDArray[np.float32],
    ) -> None:
        self.size, self.crop, self.resample, self.table = size, crop, resample, table

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """RGB images -> (n, channels, height, width) float32."""
        return torch.from_numpy(np.stack([self.one(image) for image in images]))

    def one(self, image: Image.Image) -> npt.NDArray[np.float32]:
        """(channels, height, width) of one image."""
        width, height = image.size
        if isinstance(self.size, int):
            short, long = min(width, height), max(width, height)
            longer = int(self.size * long / short)
            new = (self.size, longer) if width <= height else (longer, self.size)
        else:
            new = self.size[::-1]
        image = image.resize(new, self.resample)
        if self.crop is not None:
            left, top = ((whole - part) // 2 for whole, part in zip(new, self.crop[::-1], strict=True))
            image = image.crop((left, top, left + self.crop[1], top + self.crop[0]))
        levels = np.asarray(image)
        pixels = np.empty((len(self.table), *levels.shape[:2]), dtype=np.float32)
        for channel, row in enumerate(self.table):
            row.take(levels[..., channel], out=pixels[channel], mode="clip")  # no value is clipped; "raise" would copy
        return pixels


def fast_transform(processor: Any) -> FastTransform | None:
    """The same preprocessing as that of a processor of `transformers`, or None where it does something else.

    Images of several sizes are compared, and not a single pixel may differ.
    """
    try:
        fast = _read_settings(processor)
        if fast is None:
            return None
        rng = np.random.default_rng(0)
        for width, height in PROBES:
            image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
            expected = processor(images=[image], return_tensors="pt")["pixel_values"]
            if not torch.equal(fast([image]), expected.float()):
                return None
    except Exception:  # processors raise whatever odd settings lead them to; the first real image will show it
        return None
    return fast


def _read_settings(processor: Any) -> FastTransform | None:
    settings = processor.to_dict()
    size, crop = settings.get("size"), settings.get("crop_size") if settings.get("do_center_crop") else None
    if not settings.get("do_resize") or settings.get("do_pad") or not isinstance(size, Mapping):
        return None
    edge = size.get("shortest_edge")
    target: int | tuple[int, int] = edge if edge else (size["height"], size["width"])
    if crop is not None:
        crop = (crop["height"], crop["width"])
        height, width = (target, target) if isinstance(target, int) else target
        if crop[0] > height or crop[1] > width:  # black borders
            return None
    # The processor's own rescaling and normalisation, of every value in every channel.
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB")
    pixels = processor(images=[ramp], do_resize=False, do_center_crop=False, return_tensors="pt")["pixel_values"]
    table = pixels[0].float().reshape(3, 256).numpy()
    return FastTransform(target, crop, Image.Resampling(settings["resample"]), table)
