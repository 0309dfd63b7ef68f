"""Images that a user's records name or hold: their ids, and where they are."""

import os
import posixpath
from pathlib import Path
from typing import Any

from corpora.images import ImageFolder, picture_name, write_picture
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.folders import SUFFIXES

# The id of a caption whose record names no image, for the message.
NO_IMAGE = "no-image"


class Pictures(ImageFolder):
    """Finds images by what a record says, and writes those that records hold.

    An image's id is its path below the folder, as `mclip-features` and `mclip-search` name the images of a folder.

    Args:
        root: the folder of images that records name.
        written: the folder for pictures that records hold.
    """

    def __init__(self, root: Path, written: Path) -> None:
        super().__init__(root)
        self.written = written
        self.held: set[str] = set()

    def path(self, image: str, paths: tuple[str, ...]) -> str | None:
        """See the base class; a picture that a record held is in the other folder."""
        return image if image in self.held else super().path(image, paths)

    def why_missing(self, image: str, paths: tuple[str, ...]) -> str:
        """See the base class."""
        return "has no image" if image == NO_IMAGE and not paths else super().why_missing(image, paths)

    def locate(self, value: Any, below: str, place: str, write: bool) -> tuple[str, tuple[str, ...]]:
        """The id of a record's image, and where it may be; nowhere if the record has none.

        Args:
            value: path, number or content of the image, or `{"bytes": ..., "path" or "name": ...}`.
            below: folder of the part's images below the root.
            place: of the record, for messages.
            write: whether to write a picture that the record holds.

        Raises:
            UserError: the value is none of these, or leads out of the folder.
        """
        if isinstance(value, dict):
            content, name = value.get("bytes"), value.get("name", "")
            value = content if content else value.get("path")
            if isinstance(value, bytes) and name:
                return self._hold(name, value, place, write)
        if isinstance(value, bytes):
            name = picture_name(value, place)
            return self._hold(f"{name[:2]}/{name}", value, place, write)
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if value is None or value == "" or (isinstance(value, str) and not value.strip()):
            return NO_IMAGE, ()
        if not isinstance(value, str):
            raise UserError(f"{place}: the image is {str(value)[:40]!r}; name the column of images with --image-column")
        return self._named(value.strip(), below, place)

    def _hold(self, name: str, content: bytes, place: str, write: bool) -> tuple[str, tuple[str, ...]]:
        if write:
            write_picture(self.written / name, content, place)
        self.held.add(name)
        return name, (name,)

    def _named(self, value: str, below: str, place: str) -> tuple[str, tuple[str, ...]]:
        assert self.root is not None
        if "://" in value:
            raise UserError(
                f"{place}: {value} is not a file; download the images first, for example with img2dataset, and give "
                "its tars"
            )
        if os.path.isabs(value):
            relative = os.path.relpath(value, self.root.resolve())
        else:
            relative = below + value.replace("\\", "/")
        path = posixpath.normpath(relative)
        if path.startswith("../"):
            raise UserError(f"{place}: the image {value} is not below {self.root}; name its folder with --images")
        paths = [path]
        if path.startswith(f"{self.root.name}/"):
            paths.append(path.removeprefix(f"{self.root.name}/"))
        if posixpath.splitext(path)[1].lower() not in SUFFIXES:
            paths += [found + ending for found in list(paths) for ending in SUFFIXES]
        # The id is the path where the image is, so that every way of writing it names one image.
        existing = super().path(path, tuple(paths))
        return existing or path, (existing,) if existing else tuple(paths)
