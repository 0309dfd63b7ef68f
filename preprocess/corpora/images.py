"""The folder of images: where each image is, and why one cannot be found."""

import unicodedata
from pathlib import Path


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


def similar_name(path: Path) -> str | None:
    """A file beside `path` whose name differs only in case or Unicode form (macOS writes é as e and an accent)."""
    if not path.parent.is_dir():
        return None
    wanted = fold_name(path.name)
    return next((entry.name for entry in sorted(path.parent.iterdir()) if fold_name(entry.name) == wanted), None)


def fold_name(name: str) -> str:
    """A key that names share if they differ only in case or Unicode form."""
    return unicodedata.normalize("NFC", name).casefold()
