"""Hostile and unusual images, made on the spot: name -> what makes it -> the error message, or the pixels."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    """The bytes of an image file."""
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def grid(*rows: list[tuple[int, ...]]) -> Image.Image:
    return Image.fromarray(np.array(rows, dtype=np.uint8))


def png(
    width: int, height: int, bits: int = 8, colour: int = 2, data: bytes = b"\0", *more: tuple[bytes, bytes]
) -> bytes:
    """A PNG by hand: it may claim what it does not hold."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *more, (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def noise(format: str) -> bytes:
    return saved(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)), format)


def slip(kind: str) -> bytes:
    """An archive whose member would be unpacked above the folder."""
    stream = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("../slipped", "x")
    else:
        with tarfile.open(fileobj=stream, mode="w") as archive:
            member = tarfile.TarInfo("../slipped")
            member.size = 1
            archive.addfile(member, io.BytesIO(b"x"))
    return stream.getvalue()


def palette() -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putdata([0, 1])
    return image


def rotated(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(grid([RED, GREEN], [BLUE, WHITE]), "PNG", exif=exif)


def animated(format: str) -> bytes:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN, BLUE)]
    lossless = {"lossless": True} if format == "WEBP" else {}
    return saved(frames[0], format, save_all=True, append_images=frames[1:], **lossless)


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) (w) file\n%%EOF\n"
# name -> (file name, bytes, part of the message)
BAD_IMAGES: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "HTML": ("x.jpg", lambda: b"<!DOCTYPE html><html>404 Not Found</html>", "is not an image in a known format"),
    "zero bytes": ("x.jpg", lambda: b"", "is not an image in a known format"),
    "truncated JPEG": ("x.jpg", lambda: noise("JPEG")[:-900], "cannot be decoded: image file is truncated"),
    "truncated PNG": ("x.png", lambda: noise("PNG")[:-900], "cannot be decoded"),
    "JPEG header alone": ("x.jpg", lambda: noise("JPEG")[:20], "is not an image in a known format|cannot be decoded"),
    "60000 x 60000": (
        "x.png",
        lambda: png(60_000, 60_000),
        "has 3600000000 pixels, more than 89478485; make it smaller",
    ),
    "12000 x 9000": ("x.png", lambda: png(12_000, 9_000), "has 12000 x 9000 pixels, more than 89478485; make it"),
    "1 x 60000": ("x.png", lambda: png(1, 60_000), "has 1 x 60000 pixels, one side more than 200 times the other"),
    "text chunk of 64 MB": (
        "x.png",
        lambda: png(1, 1, 8, 2, b"\0" * 4, (b"zTXt", b"k\0\0" + zlib.compress(bytes(2**26)))),
        "cannot be decoded: Decompressed data too large",
    ),
    "PostScript": ("x.jpg", lambda: POSTSCRIPT, "is not an image in a known format"),
    "PostScript by name": ("x.eps", lambda: POSTSCRIPT, "is not an image in a known format"),
    "floats": ("x.tiff", lambda: saved(Image.new("F", (2, 2)), "TIFF"), "floating point pixels have no known range"),
    "zip": ("x.png", lambda: slip("zip"), "is not an image in a known format"),
    "tar": ("x.png", lambda: slip("tar"), "is not an image in a known format"),
}
# name -> (bytes, the pixels that a viewer shows)
GOOD_IMAGES: dict[str, tuple[Callable[[], bytes], list[list[tuple[int, ...]]]]] = {
    "CMYK": (lambda: saved(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "TIFF"), [[RED]]),
    "CMYK, white": (lambda: saved(Image.new("CMYK", (1, 1)), "TIFF"), [[WHITE]]),
    "16-bit grey": (
        lambda: saved(Image.fromarray(np.array([[0, 255, 32896, 65535]], dtype=np.uint16)), "PNG"),
        [[(0,) * 3, (1,) * 3, (128,) * 3, WHITE]],
    ),
    "16-bit colour": (lambda: png(1, 1, 16, 2, b"\0\xff\xff\x80\x80\0\0"), [[(255, 128, 0)]]),
    "palette with transparency": (lambda: saved(palette(), "PNG", transparency=1), [[RED, WHITE]]),
    "GIF with transparency": (lambda: saved(palette(), "GIF", transparency=1), [[RED, WHITE]]),
    "half transparent": (lambda: saved(grid([(*RED, 0), (0, 0, 0, 51)]), "PNG"), [[WHITE, (204,) * 3]]),
    "animated GIF": (lambda: animated("GIF"), [[RED] * 4] * 4),
    "animated WebP": (lambda: animated("WEBP"), [[RED] * 4] * 4),
    "EXIF 1, upright": (lambda: rotated(1), [[RED, GREEN], [BLUE, WHITE]]),
    "EXIF 2, mirrored": (lambda: rotated(2), [[GREEN, RED], [WHITE, BLUE]]),
    "EXIF 3, upside down": (lambda: rotated(3), [[WHITE, BLUE], [GREEN, RED]]),
    "EXIF 6, a quarter turn": (lambda: rotated(6), [[BLUE, RED], [WHITE, GREEN]]),
    "EXIF 8, the other way": (lambda: rotated(8), [[GREEN, WHITE], [RED, BLUE]]),
    "EXIF 99, no such thing": (lambda: rotated(99), [[RED, GREEN], [BLUE, WHITE]]),
    "one bit": (lambda: saved(Image.new("1", (1, 1), 1), "PNG"), [[WHITE]]),
}
