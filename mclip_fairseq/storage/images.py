"""Image files: finding them, naming them by ids, and decoding them to RGB as a viewer shows them."""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.extras import import_extra
from mclip_fairseq.storage.files import printable, shown
from mclip_fairseq.storage.folders import READS_AVIF, READS_HEIC, SUFFIXES, Listing, list_folder
from mclip_fairseq.storage.image_lists import read_image_list

# Other formats are never tried, whatever the file name: Pillow would start Ghostscript for PostScript.
FORMATS = (
    *("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"),
    *(("AVIF",) if READS_AVIF else ()),
    *(("HEIF",) if READS_HEIC else ()),
)
# Files of whole numbers of more than 8 bits whose range is known: 0 to 65535.
SIXTEEN_BITS = ("PNG", "PPM")
# Checked against the header, before any pixel is decoded; a quarter of a gigabyte as RGB.
MAX_PIXELS = 89_478_485
# The shorter side is enlarged to the model's input size: a line of 1 x 60000 pixels would become gigabytes.
MAX_RATIO = 200
BITS_PER_SAMPLE = 258  # a tag of TIFF
# Pillow's own limit.
PIXEL_CEILING = 2 * MAX_PIXELS


class ImageError(UserError):
    """An image that cannot be used.

    Args:
        path: the file.
        reason: what is wrong with it, without the path.
    """

    def __init__(self, path: str | Path | BinaryIO, reason: str) -> None:
        self.reason = printable(reason)
        super().__init__(f"{shown(path) if isinstance(path, str | Path) else 'the image'}: {self.reason}")


def load_image(
    path: str | Path | BinaryIO,
    max_pixels: int = MAX_PIXELS,
    near: int | None = None,
    max_bytes: int | None = None,
) -> Image.Image:
    """Decode an image file completely.

    Orientation (EXIF) is applied, transparency is composed over white, 16-bit grey is scaled to 8 bits, CMYK becomes
    RGB, and the first frame of an animation is used. A truncated file is an error.

    Args:
        path: the file, or an open one.
        max_pixels: more pixels than this, according to the header, are refused.
        near: a side length in pixels that is enough; a JPEG is then decoded faster.
        max_bytes: an image whose decoding takes more memory than this is refused; see `decoding_bytes`.

    Returns:
        An image of mode RGB.

    Raises:
        ImageError: naming the file and what is wrong with it.
    """
    try:
        if isinstance(path, str | Path) and os.path.exists(path) and not os.path.isfile(path):
            raise ImageError(path, "is not an ordinary file")  # opening a pipe would wait forever
        if READS_HEIC:
            register_heic()
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise ImageError(path, too_large(path, f"{image.width} x {image.height}", max_pixels))
            if max(image.size) > MAX_RATIO * min(image.size):
                sides = f"{image.width} x {image.height} pixels"
                raise ImageError(path, f"has {sides}, one side more than {MAX_RATIO} times the other; crop it")
            pixels = image.width * image.height
            if near is not None:
                image.draft("RGB", (near, near))
            if max_bytes is not None and decoding_bytes(image, pixels) > max_bytes:
                needed = decoding_bytes(image, pixels) >> 20
                raise ImageError(path, f"takes {needed} MiB to decode, more than {max_bytes >> 20}; make it smaller")
            image.load()
            return upright_rgb(image)
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(path, "does not exist") from error
    except UnidentifiedImageError as error:
        raise ImageError(path, "is not an image in a known format") from error
    except Image.DecompressionBombError as error:
        counted = re.search(r"\((\d+) pixels\)", str(error))
        raise ImageError(path, too_large(path, counted[1] if counted else "too many", max_pixels)) from error
    except Exception as error:  # decoders raise whatever broken bytes lead them to
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ImageError(path, f"cannot be decoded: {reason}") from error


def decoding_bytes(image: Image.Image, pixels: int) -> int:
    """The memory that decoding an opened image to RGB takes at its peak, in bytes, estimated from its header.

    Args:
        image: opened, and not decoded; a JPEG perhaps with a smaller size (`draft`).
        pixels: of the file.
    """
    needed = image.width * image.height * (24 if image.has_transparency_data else 8 + 9 * image.mode.startswith("I"))
    if image.format == "JPEG" and image.info.get("progressive"):
        needed += 2 * len(image.getbands()) * pixels  # all coefficients, whatever size is asked for
    elif image.format == "TIFF":
        bits = image.tag_v2.get(BITS_PER_SAMPLE, (8,))  # type: ignore[attr-defined]
        needed += pixels * max(sum(bits) if isinstance(bits, tuple) else int(bits), 8) // 8
    elif image.format in ("WEBP", "AVIF", "HEIF"):
        needed += 12 * pixels  # their libraries keep a frame of their own
    return needed


@cache
def register_heic() -> None:
    """Let Pillow read HEIC, which phones write."""
    import_extra("pillow_heif", "heic").register_heif_opener()


def too_large(path: str | Path | BinaryIO, pixels: str, limit: int) -> str:
    """Message for an oversized image. Uploads get no hint about --max-pixels."""
    more = ", or allow more with --max-pixels" if isinstance(path, str | Path) else ""
    return f"has {pixels} pixels, more than {limit}; make it smaller{more}"


def check_max_pixels(limit: int) -> int:
    """Check --max-pixels; returns it.

    Raises:
        UserError: not positive, or above Pillow's limit.
    """
    if not 1 <= limit <= PIXEL_CEILING:
        raise UserError(f"--max-pixels is {limit}; give a number from 1 to {PIXEL_CEILING} (Pillow's limit)")
    return limit


def upright_rgb(image: Image.Image) -> Image.Image:
    """The image as a viewer shows it: EXIF orientation applied, then `to_rgb`.

    Raises:
        UserError: pixels without a known range, such as floats.
    """
    if image.mode == "I" and image.format is not None and image.format not in SIXTEEN_BITS:
        raise UserError("32-bit integer pixels have no known range; convert the image to 8 bits")
    return to_rgb(ImageOps.exif_transpose(image))


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB, with transparency composed over white.

    Raises:
        UserError: pixels without a known range, such as floats.
    """
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip at 255
        grey = np.asarray(image).astype(np.int32)
        np.clip(grey, 0, 65535, out=grey)
        grey += 128
        grey //= 257
        image = Image.fromarray(grey.astype(np.uint8))
    if image.mode == "F":
        raise UserError("floating point pixels have no known range; convert the image to 8 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def resolve_image(root: str | Path, image_id: str) -> Path:
    """The file of an image id, which is a path below `root`.

    Raises:
        UserError: an absolute id, or one with `..`.
    """
    relative = PurePosixPath(image_id)
    if relative.is_absolute() or ".." in relative.parts:
        raise UserError(f"image id {image_id!r} leaves the folder {root}; ids are paths below it")
    return Path(root) / relative


def find_images(root: str | Path | None, list_file: str | Path | None = None, hidden: bool = False) -> Listing:
    """The images of a folder or of a list file, with their ids, and what was left out.

    `Listing.check_names` checks the names of a folder. Missing files are noticed when they are decoded.

    Args:
        root: without `list_file`, the folder to search recursively; ids are paths relative to it, sorted. With
            `list_file`, the folder that its relative paths start from; None is the list's own folder.
        list_file: see `read_image_list`. The order is kept.
        hidden: of a folder, also take hidden images.

    Raises:
        UserError: no images, an empty line, or an id that appears twice, naming both lines.
    """
    if list_file is not None:
        listed = read_image_list(Path(list_file), root)
        return Listing(listed.images, columns=listed.columns)
    if root is None or not Path(root).is_dir():
        raise UserError(f"{root}: is neither a folder of images nor a list file")
    listing = list_folder(Path(root), hidden)
    if not listing.images and not listing.awkward:
        notes = "".join(f"; {note}" for note in listing.notes(Path(root)))
        raise UserError(f"{root}: holds no images ({' '.join(SUFFIXES)}){notes}")
    return listing
