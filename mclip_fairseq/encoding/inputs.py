"""What a caller may pass to be encoded: texts and images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.images import MAX_PIXELS, load_image, upright_rgb
from mclip_fairseq.storage.texts import LONE_SURROGATE

ImageInput = str | Path | Image.Image | np.ndarray


def check_texts(texts: Sequence[Any]) -> None:
    """Refuse what is not Unicode text.

    Raises:
        UserError: naming the number of the first such item.
    """
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"text {number} is a {type(text).__name__}; give str")
        if LONE_SURROGATE.search(text):
            raise UserError(f"text {number} is not Unicode text, it has half of a surrogate pair; decode it again")


def to_pil(image: ImageInput, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read a path, or turn an array or an image of any mode into what reading its file would give."""
    if isinstance(image, np.ndarray):
        shape = f"{image.dtype} and shape {image.shape}"
        try:
            image = Image.fromarray(image)
        except TypeError as error:
            raise UserError(f"an array of {shape} is not an image; give (height, width, 3) uint8") from error
    return upright_rgb(image) if isinstance(image, Image.Image) else load_image(image, max_pixels)
