"""Images in webdataset tars, by their ids, without unpacking: on the disk or behind any address of fsspec.

Where each image starts is found once per tar and kept in the user's cache. Any image can then be read by itself, so a
training shuffles, shards and resumes as it does with a folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from mclip_fairseq.storage.addresses import asking, filesystem_of, list_parts, part_name, stamp_of, tar_members
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import write_bytes
from mclip_fairseq.storage.folders import SUFFIXES
from mclip_fairseq.storage.images import ImageError, resolve_image
from mclip_fairseq.storage.verified import cache_folder

THREADS = 8  # tars that are indexed at once
PARSING = threading.Lock()  # numpy parses the head of a file with ast, which Python 3.11 cannot do in two threads
BLOCK_BYTES = 1 << 20  # read at once while a tar of another file system is indexed
FIELDS = np.dtype([("key", "<u8"), ("check", "<u4"), ("part", "<u4"), ("start", "<i8"), ("size", "<i8")])
Entries = npt.NDArray[np.void]


class TarImages:
    """The images of tars.

    An id is a key, with or without its ending, or SHARD/KEY or FOLDER/SHARD/KEY, where several tars have the key.

    Args:
        pattern: a path or an address, see `list_parts`.

    Raises:
        UserError: nothing fits the pattern, or a tar is damaged or holds no images.
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.parts = list_parts(pattern, distinct=False)
        with ThreadPoolExecutor(THREADS) as threads:
            tables = list(threads.map(entries_of, self.parts))
        for number, table in enumerate(tables):
            table["part"] = number
        entries = np.concatenate(tables)
        self.entries: Entries = entries[np.argsort(entries["key"], kind="stable")]
        self.keys = np.ascontiguousarray(self.entries["key"])
        self._readers: dict[int, Reader] = {}

    def __len__(self) -> int:
        return len(self.entries)

    def __getstate__(self) -> dict[str, Any]:
        """Connections stay in their process."""
        return self.__dict__ | {"_readers": {}}

    @cached_property
    def numbers(self) -> dict[str, list[int]]:
        """Numbers of the tars of a name, and of a folder and a name."""
        numbers: dict[str, list[int]] = {}
        for number, part in enumerate(self.parts):
            folder = PurePosixPath(part).parent.name
            for name in (part_name(part), f"{folder}/{part_name(part)}"):
                numbers.setdefault(name, []).append(number)
        return numbers

    def open(self, image_id: str) -> BytesIO:
        """The content of an image.

        Raises:
            ImageError: no tar has it.
            UserError: several tars have it, or it cannot be read now.
        """
        found = self._entry(image_id)
        reader = self._readers.setdefault(os.getpid(), Reader())
        return BytesIO(reader.read(self.parts[int(found["part"])], int(found["start"]), int(found["size"])))

    def place(self, image_id: str) -> str:
        """What messages call an image."""
        return f"{self.pattern}, {image_id}"

    def _entry(self, image_id: str) -> Any:
        """Where an image is."""
        stem, dot, ending = image_id.rpartition(".")
        names = [image_id, *([stem] if dot and f".{ending.lower()}" in SUFFIXES else [])]
        for name in names:
            found = self._named(name)
            pieces = name.split("/")
            for cut in range(1, len(pieces)):
                if not len(found) and (shard := "/".join(pieces[:cut])) in self.numbers:
                    found = self._named("/".join(pieces[cut:]))
                    found = found[np.isin(found["part"], self.numbers[shard])]
            if len(found) > 1:
                raise UserError(
                    f"{self.pattern}: {len(found)} tars have the image {image_id!r}; name it SHARD/KEY or "
                    "FOLDER/SHARD/KEY in the ids"
                )
            if len(found):
                return found[0]
        raise ImageError(self.place(image_id), "is in none of the tars")

    def _named(self, key: str) -> Entries:
        """The entries of a key."""
        value, check = hashes(key)
        start, end = (np.searchsorted(self.keys, np.uint64(value), side=side) for side in ("left", "right"))
        found = self.entries[start:end]
        return found[found["check"] == check]


class Reader:
    """Reads pieces of files; one per process, because connections do not survive a fork."""

    def __init__(self) -> None:
        self.systems: dict[str, tuple[Any, str]] = {}

    def read(self, address: str, start: int, size: int) -> bytes:
        """`size` bytes from `start`.

        Raises:
            UserError: they cannot be read; that is the file system's fault, and not a bad image.
        """
        if address not in self.systems:
            self.systems[address] = filesystem_of(address, fresh=True)
        filesystem, path = self.systems[address]
        with asking(address):
            content: bytes = filesystem.cat_file(path, start=start, end=start + size)
        if len(content) != size:
            raise UserError(f"{address}: ends early, it has changed since the run began; restore it, and resume")
        return content


def hashes(key: str) -> tuple[int, int]:
    """96 bits of a hash of a key, which no two of a billion keys share."""
    digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=12).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def entries_of(part: str) -> Entries:
    """Where the images of a tar are, from the cache or from the tar itself.

    Raises:
        UserError: it is damaged, holds no images, or has two images of one key.
    """
    name = hashlib.sha256(f"{part}\n{stamp_of(part)}".encode()).hexdigest()[:32]
    record = cache_folder() / "tars" / f"{name}.npy"
    with contextlib.suppress(OSError, ValueError), PARSING:  # missing or damaged: as good as none
        known = np.load(record, allow_pickle=False)
        if known.dtype == FIELDS:
            return known
    entries = read_entries(part)
    with contextlib.suppress(OSError):  # a cache that cannot be written only costs time
        record.parent.mkdir(parents=True, exist_ok=True)
        stream = BytesIO()
        np.save(stream, entries, allow_pickle=False)
        write_bytes(record, stream.getvalue())
    return entries


def read_entries(part: str) -> Entries:
    """Where the images of a tar are; reads all its headers."""
    filesystem, path = filesystem_of(part)
    rows: dict[str, tuple[int, int, int, int, int]] = {}
    with asking(part), filesystem.open(path, "rb", block_size=BLOCK_BYTES) as stream:
        for key, ending, member in tar_members(part, stream):
            if f".{ending}" not in SUFFIXES:
                continue
            if key in rows:
                raise UserError(f"{part}: has two images of the key {key!r}; make it again")
            rows[key] = (*hashes(key), 0, member.offset_data, member.size)
    if not rows:
        raise UserError(f"{part}: holds no images; leave it out")
    return np.array(list(rows.values()), dtype=FIELDS)


@dataclass(frozen=True)
class FolderImages:
    """The images of a folder; an id is a path below it.

    Attributes:
        root: the folder.
    """

    root: Path

    def open(self, image_id: str) -> Path:
        """The file of an image."""
        return resolve_image(self.root, image_id)

    def place(self, image_id: str) -> str:
        """What messages call an image."""
        return str(resolve_image(self.root, image_id))


def open_images(root: str | Path) -> FolderImages | TarImages:
    """Where images are read from by their ids: a folder, or tars if the path, address or pattern ends in `.tar`."""
    return TarImages(str(root)) if str(root).endswith(".tar") else FolderImages(Path(root))
