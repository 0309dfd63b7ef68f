"""What a collection of a database stores about images besides their vectors."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from mclip_fairseq.encoding.galleries import ImageGallery
from mclip_fairseq.search.sources import Gallery
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.image_lists import Value

TEXT_BYTES = {"id": 4096, "folder": 4096, "file": 4096, "date": 64}  # of the fields that are texts, at most
NUMBERS = ("root", "size", "changed")  # the fields that are whole numbers
RESERVED = ("id", "vector", "file", *NUMBERS)  # names that columns of a list cannot have
NOWHERE = -1  # the root of a record whose picture nobody knows


@dataclass
class Records:
    """What a collection stores about the images of a gallery besides their vectors.

    Args:
        gallery: the images.
        lines: of `picture_lines`, one per image.

    Raises:
        UserError: an id is too long, or a column of the list has a name that records use themselves.
    """

    gallery: Gallery
    lines: Sequence[str]
    columns: Mapping[str, Sequence[Value | None]] = field(init=False)

    def __post_init__(self) -> None:
        pictures = self.gallery if isinstance(self.gallery, ImageGallery) else self.gallery.pictures
        self.pictures = pictures
        self.columns = {} if pictures is None else pictures.listing.columns
        for name in self.columns:
            if name in RESERVED:
                raise UserError(f"the column {name!r} of the list has a name that records use themselves; rename it")
        for name in self.gallery.index.names:
            if len(name.encode()) > TEXT_BYTES["id"]:
                raise UserError(f"the id {name[:60]!r}... is longer than {TEXT_BYTES['id']} bytes; shorten it")

    def place(self, row: int) -> tuple[int, str]:
        """Root folder and path of an image."""
        parts = self.lines[row].split("\t", 2)
        return (int(parts[1]), parts[2]) if len(parts) == 3 else (NOWHERE, "")

    def time(self, row: int) -> tuple[int, int]:
        """Size and time of change of an image that is encoded from its file; zeros for features."""
        size, changed, *_ = (self.gallery.times[row] if isinstance(self.gallery, ImageGallery) else None) or (0, 0)
        return size, changed

    def record(self, row: int) -> dict[str, Any]:
        """The record of an image, without its vector: date is the day of the file's last change, or the list's."""
        name, (root, file), (size, changed) = self.gallery.index.names[row], self.place(row), self.time(row)
        record: dict[str, Any] = {"id": name, "folder": posixpath.dirname(name), "root": root, "file": file}
        record |= {"size": size, "changed": changed, "date": ""}
        if self.pictures is None:
            return record
        listed = row if self.pictures is self.gallery else self.pictures.index.find(name)
        assert listed is not None  # `picture_lines` has found all of them
        if (time := self.pictures.times[listed]) is not None:
            record["date"] = datetime.fromtimestamp(time[1] / 1e9, UTC).date().isoformat()
        given = {column: values[listed] for column, values in self.columns.items()}
        texts = {column: str(given[column]) for column in ("date", "folder") if given.get(column) is not None}
        return record | {column: value for column, value in given.items() if value is not None} | texts
