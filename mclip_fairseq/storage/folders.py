"""The images of a folder: what is an image, what is left out and why, and which names cannot be ids."""

from __future__ import annotations

import importlib.util
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import shown
from mclip_fairseq.storage.image_lists import Value

try:
    from PIL.AvifImagePlugin import SUPPORTED as READS_AVIF
except ImportError:  # Pillow before 11.3
    READS_AVIF = False
READS_HEIC = importlib.util.find_spec("pillow_heif") is not None
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *((".avif",) if READS_AVIF else ()),
    *((".heic", ".heif") if READS_HEIC else ()),
)
# Folders that operating systems and network storage keep beside photos: bins, thumbnails, snapshots.
SYSTEM_FOLDERS = {
    *("@eadir", "@recycle", "@recently-snapshot", "@tmp", "#recycle", "#snapshot", "$recycle.bin", "recycler"),
    *("system volume information", "lost+found", "__macosx"),
}
NAMED_ENDINGS = 8  # in a message


@dataclass
class Listing:
    """What a folder, or a list of images, holds.

    Attributes:
        images: (id, file), by id.
        awkward: (path as messages show it, what is wrong) of images whose names cannot be ids.
        endings: ending -> number of files that are not read; "" for files without one.
        hidden: number of images with hidden names, or in hidden folders and those of `SYSTEM_FOLDERS`.
        columns: of a list, what it says about the images besides; see `ImageList`.
    """

    images: list[tuple[str, Path]] = field(default_factory=list)
    awkward: list[tuple[str, str]] = field(default_factory=list)
    endings: Counter[str] = field(default_factory=Counter)
    hidden: int = 0
    columns: dict[str, list[Value | None]] = field(default_factory=dict)

    def notes(self, place: Path) -> list[str]:
        """What was left out, a sentence each."""
        notes = []
        if self.hidden:
            notes.append(
                f"{self.hidden} hidden images and images of bins and thumbnail folders are left out; --hidden takes "
                "them in"
            )
        if self.endings:
            by_count = sorted(self.endings.items(), key=lambda item: (-item[1], item[0] == "", item[0]))
            counts = [f"{shown(ending) or 'none'} {count}" for ending, count in by_count[:NAMED_ENDINGS]]
            more = ", ..." if len(self.endings) > NAMED_ENDINGS else ""
            extra = "" if READS_HEIC or not self.endings.keys() & {".heic", ".heif"} else HEIC_HINT
            total = sum(self.endings.values())
            notes.append(
                f"{total} files with endings that are not read ({', '.join(counts)}{more}) are left out{extra}"
            )
        return [f"{shown(place)}: {note}" for note in notes]

    def check_names(self, place: Path, budget: int | None) -> int | None:
        """Check that no more images than a budget have names that cannot be ids.

        Args:
            place: the folder, for messages.
            budget: how many images may be skipped; None skips none.

        Returns:
            what is left of the budget.

        Raises:
            UserError: there are more; names all of them.
        """
        count = len(self.awkward)
        if count <= (budget or 0):
            return None if budget is None else budget - count
        if count == 1:
            name, reason = self.awkward[0]
            raise UserError(f"{place}/{name}: {reason}; rename it, or leave it out with --skip-budget 1")
        lines = "".join(f"\n  {name}: {reason}" for name, reason in self.awkward)
        raise UserError(
            f"{place}: {count} images have names that cannot be ids; rename them, or leave them out with "
            f"--skip-budget {count}:{lines}"
        )

    def skipped(self, place: Path) -> list[str]:
        """A sentence for each image that is left out because of its name."""
        return [f"{shown(place)}/{name}: {reason}; it is left out" for name, reason in self.awkward]


HEIC_HINT = '; for .heic, pip install "mclip_fairseq[heic]"'


def list_folder(root: Path, hidden: bool = False) -> Listing:
    """The images below a folder; see `Listing`.

    Ids depend neither on the order in which the file system lists, nor on links: a folder that is found by its own
    path and by a link is read under its own path, and one that several links lead to under the first of them.

    Args:
        root: the folder.
        hidden: also take hidden images and those of `SYSTEM_FOLDERS`.

    Raises:
        UserError: a folder below it cannot be listed.
    """
    listing = Listing()
    for path, is_hidden in walk(root):
        relative = os.path.relpath(path, root).replace(os.sep, "/")
        ending = os.path.splitext(path)[1].lower()
        if ending not in SUFFIXES:
            listing.endings[ending] += not is_hidden
        elif is_hidden and not hidden:
            listing.hidden += 1
        elif reason := why_awkward(relative):
            listing.awkward.append((shown(relative), reason))
        else:
            listing.images.append((relative, Path(path)))
    listing.endings = +listing.endings
    listing.images.sort()
    listing.awkward.sort()
    return listing


def why_awkward(name: str) -> str:
    """Why a path below a folder cannot be an id; empty if it can."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    if "\t" in name or len(name.splitlines()) != 1:
        return "its name has a tab or a line break"
    return "its name begins or ends with a space" if name != name.strip() else ""


def walk(root: Path) -> Iterator[tuple[str, bool]]:
    """(path, whether it is hidden) of all files below a folder; linked folders last, each folder once."""
    seen: set[str] = set()
    pending = [(str(root), False)]
    while pending:
        links: list[tuple[str, bool]] = []
        for start, start_hidden in pending:
            yield from _walk_one(start, start_hidden, seen, links)
        pending = sorted(links)


def _walk_one(
    start: str, start_hidden: bool, seen: set[str], links: list[tuple[str, bool]]
) -> Iterator[tuple[str, bool]]:
    """The files below a folder, but not below its links, which are added to `links`."""
    hidden_folders = {start: start_hidden}
    for parent, folders, names in os.walk(start, onerror=_raise_unlistable):
        hidden = hidden_folders.pop(parent)
        real = os.path.realpath(parent)
        if real in seen:  # a link that leads back, or a second one to the same folder
            folders.clear()
            continue
        seen.add(real)
        for name in list(folders):
            path, below = os.path.join(parent, name), hidden or is_hidden(name)
            if os.path.islink(path):
                links.append((path, below))
                folders.remove(name)
            else:
                hidden_folders[path] = below
        for name in names:
            yield os.path.join(parent, name), hidden or is_hidden(name)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden or kept by the system, by its name."""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS


def _raise_unlistable(error: OSError) -> None:
    """Report a folder that cannot be listed, instead of treating it as empty."""
    raise UserError(f"{error.filename}: cannot be read: {error.strerror}") from error
