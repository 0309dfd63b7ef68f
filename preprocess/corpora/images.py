"""Images of a corpus: where each is below its folder, why one cannot be found, and pictures inside records."""

import hashlib
import unicodedata
from pathlib import Path

from mclip_fairseq.storage.errors import UserError

# How files of each format begin. A WebP begins like other files of its container.
ENDINGS = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"GIF8": ".gif", b"RIFF": ".webp"}


class ImageFolder:
    """Finds images below a folder.

    Args:
        root: the folder, or None to check nothing.
        remember: look for an image only once; unnecessary if every caption has its own image.
    """

    def __init__(self, root: Path | None, remember: bool = True) -> None:
        self.root = root
        self.remember = remember
        self.cache: dict[str, str | None] = {}

    def path(self, image: str, paths: tuple[str, ...]) -> str | None:
        """The image's path below the folder: the first of `paths` that exists, or None."""
        if not self.remember:
            return self._find(paths)
        if image not in self.cache:
            self.cache[image] = self._find(paths)
        return self.cache[image]

    def _find(self, paths: tuple[str, ...]) -> str | None:
        root = self.root
        if root is None or not paths:
            return paths[0] if paths else None
        return next((path for path in paths if (root / path).is_file()), None)

    def why_missing(self, image: str, paths: tuple[str, ...]) -> str:
        """A message for an image that was not found."""
        if not paths or self.root is None:
            return f"the image {image} is missing"
        message = f"the image {image} is missing: there is no {paths[0]} below {self.root}"
        similar = next((name for path in paths if (name := similar_name(self.root / path))), None)
        if similar is None:
            return message
        return f"{message}, but {similar!a}, which differs only in case or Unicode form; rename it"


def picture_name(content: bytes, place: str) -> str:
    """Name of a picture that a record holds, by its content: the same picture in two records is one image.

    Raises:
        UserError: it is in no known format.
    """
    ending = next((ending for start, ending in ENDINGS.items() if content.startswith(start)), None)
    if ending is None:
        raise UserError(f"{place}: its picture is in no known format; PNG, JPEG, GIF and WebP are")
    return hashlib.sha256(content).hexdigest()[:32] + ending


def write_picture(path: Path, content: bytes, place: str) -> None:
    """Write a picture, unless an earlier run has written it.

    Raises:
        UserError: a different picture has that path.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Whole or not at all: a leftover of a killed run must not look like a different picture.
        part = path.with_name(path.name + ".part")
        part.write_bytes(content)
        part.replace(path)
    elif path.read_bytes() != content:
        raise UserError(f"{place}: {path} already exists and is a different image; give a new --output")


def similar_name(path: Path) -> str | None:
    """A file beside `path` whose name differs only in case or Unicode form (macOS writes é as e and an accent)."""
    if not path.parent.is_dir():
        return None
    wanted = fold_name(path.name)
    return next((entry.name for entry in sorted(path.parent.iterdir()) if fold_name(entry.name) == wanted), None)


def fold_name(name: str) -> str:
    """A key that names share if they differ only in case or Unicode form."""
    return unicodedata.normalize("NFC", name).casefold()
