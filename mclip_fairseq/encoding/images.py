"""Images for bulk encoding: where they are, and how they are decoded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mclip_fairseq.encoding.bulk import InputBatch
from mclip_fairseq.storage.files import file_sha256, size_and_time
from mclip_fairseq.storage.images import ImageError, load_image

CPU_BATCH = 32  # more images at once are slower on a CPU, whose caches their states exceed


@dataclass(frozen=True)
class Slice:
    """An image inside a file, such as a member of a tar.

    Attributes:
        file: the file.
        start: of the image, in bytes.
        size: of the image, in bytes.
    """

    file: Path
    start: int
    size: int


Place = Path | Slice | bytes  # where an image is


def opened(place: Place) -> Path | BytesIO:
    """What `load_image` reads."""
    if isinstance(place, Path):
        return place
    if isinstance(place, bytes):
        return BytesIO(place)
    with place.file.open("rb") as stream:
        stream.seek(place.start)
        return BytesIO(stream.read(place.size))


class Decoded(Dataset[tuple[str, Tensor | str]]):
    """Decoded and transformed images, or why they cannot be read; made for worker processes and threads.

    Args:
        images: (id, place).
        transform: RGB images -> (n, channels, height, width).
        max_pixels: see `load_image`.
        near: see `load_image`.
    """

    def __init__(
        self,
        images: Sequence[tuple[str, Place]],
        transform: Callable[..., Tensor],
        max_pixels: int,
        near: int | None = None,
    ) -> None:
        self.images = images
        self.transform = transform
        self.max_pixels = max_pixels
        self.near = near

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> tuple[str, Tensor | str]:
        """(id, (channels, height, width) pixels), or (id, reason)."""
        name, place = self.images[number]
        try:
            return name, self.transform([load_image(opened(place), self.max_pixels, self.near)])[0]
        except ImageError as error:
            return name, error.reason


def collate(items: Sequence[tuple[str, Tensor | str]]) -> InputBatch:
    """Stack the images of a batch that could be read."""
    pixels = [item for _, item in items if isinstance(item, Tensor)]
    unreadable = [(name, item) for name, item in items if isinstance(item, str)]
    return InputBatch(len(items), {"pixel_values": torch.stack(pixels)} if pixels else {}, unreadable)


class ImageSource:
    """Images, decoded by processes while a GPU computes, or else by threads between the batches of the model.

    Args:
        images: (id, place).
        transform: the model's preprocessing, with a `description`.
        encode_image: (n, channels, height, width) pixels -> (n, dim).
        workers: processes or threads that decode; 0 decodes in this process.
        max_pixels: see `load_image`.
        hashed: recognise changed images by the hashes of their files, not by size and time of change.
        near: see `load_image`.
    """

    modality = "image"
    place = ""

    def __init__(
        self,
        images: Sequence[tuple[str, Place]],
        transform: Any,
        encode_image: Callable[[Tensor], Tensor],
        workers: int,
        max_pixels: int,
        hashed: bool = False,
        near: int | None = None,
    ) -> None:
        self.ids = [name for name, _ in images]
        self.hashed = hashed
        self.preprocessing: str = transform.description + (f", JPEGs decoded near {near} pixels" if near else "")
        self.encode_image = encode_image
        self.images = Decoded(images, transform, max_pixels, near)
        self.workers = workers

    @cached_property
    def content(self) -> str:
        """A hash of what the files contain; images in other places count by their ids."""
        return images_content([place for _, place in self.images.images if isinstance(place, Path)], self.hashed)

    def batches(self, numbers: list[list[int]], device: torch.device) -> Iterator[InputBatch]:
        """Decode the images with these numbers, batch by batch, in order, for a model on the device."""
        if device.type == "cpu":
            yield from self._between_batches(numbers)
            return
        workers = min(self.workers, len(numbers))
        loader: Any = DataLoader(
            self.images, batch_sampler=numbers, collate_fn=collate, num_workers=workers, pin_memory=True
        )
        yield from loader

    def _between_batches(self, numbers: list[list[int]]) -> Iterator[InputBatch]:
        # The model computes on all cores. Beside it, each decoder would stop one of its threads, and so all of them.
        with ThreadPoolExecutor(max(1, self.workers)) as pool:
            for batch in numbers:
                yield collate(list(pool.map(self.images.__getitem__, batch)))

    def encode(self, inputs: dict[str, Tensor], device: torch.device) -> Tensor:
        """`pixel_values` (n, channels, height, width) -> (n, dim)."""
        pixels = inputs["pixel_values"]
        parts = pixels.split(CPU_BATCH) if device.type == "cpu" else [pixels]
        return torch.cat([self.encode_image(part.to(device, non_blocking=True)) for part in parts])


def images_content(paths: Sequence[Path], hashed: bool) -> str:
    """A hash over size and time of change of image files, which costs no reading, or over their own hashes."""
    digest = hashlib.sha256()
    for path in paths:
        if hashed:
            digest.update(f"{file_sha256(path) if path.is_file() else None}\n".encode())
        else:
            digest.update(f"{size_and_time(path)}\n".encode())
    return f"{'hashes' if hashed else 'sizes and times'} {digest.hexdigest()}"
