"""Captions of images on their way from a reader to the project's files."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corpora.output import Output
from corpora.text import one_line
from mclip_fairseq.storage.errors import UserError

TRAIN = "train"
# No white space, nothing that a terminal obeys, and no half of a character, which JSON may hold and UTF-8 may not.
SAFE_NAME = re.compile(r"(?!/)[^\s\x00-\x1f\x7f-\x9f\ud800-\udfff]+")
TEXTS = "texts.en.tsv"
# Splits whose English captions the teacher reads.
TAUGHT = (TRAIN, "valid")
IMAGES = "images.tsv"
Counts = Mapping[tuple[str, str], tuple[int | None, int | None]]


@dataclass(frozen=True, slots=True)
class Caption:
    """A caption as a reader yields it.

    Attributes:
        split: for example "train" or "test_2016_flickr".
        language: its code.
        image: id of the image, unique in the data set: the name of its file.
        text: as the source has it.
        place: where that is, for messages.
        paths: where the image may lie below the folder of images, the usual place first; none if it is known to be
            missing.
    """

    split: str
    language: str
    image: str
    text: str
    place: str
    paths: tuple[str, ...]


class ImageFolder:
    """Where the images are.

    Args:
        root: the folder, or None: then nothing is looked for.
        remember: look for an image only once; not needed where every caption has an image of its own.
    """

    def __init__(self, root: Path | None, remember: bool = True) -> None:
        self.root = root
        self.remember = remember
        self.known: dict[str, str | None] = {}

    def path(self, caption: Caption) -> str | None:
        """The image's path below the folder, or None when it is not there."""
        if not self.remember:
            return self._find(caption.paths)
        if caption.image not in self.known:
            self.known[caption.image] = self._find(caption.paths)
        return self.known[caption.image]

    def _find(self, paths: tuple[str, ...]) -> str | None:
        root = self.root
        if root is None or not paths:
            return paths[0] if paths else None
        return next((path for path in paths if (root / path).is_file()), None)


class CaptionWriter:
    """Writes `SPLIT.LANG`, `SPLIT.LANG.ids`, `images.tsv` and, of English, `texts.en.tsv`.

    An `.ids` line is the image id; of English captions of the splits that are trained and validated on, followed by a
    tab and the caption's id in `texts.en.tsv`, from which the teacher's text features are made.

    Args:
        output: where they go.
        images: where the images are.
        budget: captions that may be left out because they are empty or their image is missing.
        skippable: splits in which the budget counts; in others a caption is never left out.
    """

    def __init__(
        self, output: Output, images: ImageFolder, budget: int = 0, skippable: frozenset[str] = frozenset()
    ) -> None:
        self.output = output
        self.images = images
        self.budget = budget
        self.skippable = skippable
        self.lines: Counter[tuple[str, str]] = Counter()
        # Image ids in the order in which they came, per split and language.
        self.order: dict[tuple[str, str], dict[str, None]] = {}
        self.listed: set[str] = set()
        self.image_count = 0
        self.left_out: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def write(self, captions: Iterable[Caption]) -> None:
        """Write all captions.

        Raises:
            UserError: an empty caption or a missing image that the budget does not allow for, a name that no image
                can have, or no caption at all.
        """
        for caption in captions:
            if not SAFE_NAME.fullmatch(caption.image) or ".." in caption.image:
                raise UserError(f"{caption.place}: {caption.image!r} is no name that an image can have")
            text = one_line(caption.text)
            path = self.images.path(caption)
            if path is None:
                where = f" at {caption.paths[0]} below {self.images.root}" if caption.paths else ""
                self._leave_out(caption, "missing image", f"the image {caption.image} is not there{where}")
            elif not text:
                self._leave_out(caption, "empty", f"the caption of {caption.image} is empty")
            else:
                self._write(caption, text, path)
        if not self.lines:
            raise UserError("the source files hold no caption of the chosen splits and languages")

    def _write(self, caption: Caption, text: str, path: str) -> None:
        group = (caption.split, caption.language)
        name = f"{caption.split}.{caption.language}"
        identifier = caption.image
        if caption.language == "en" and caption.split in TAUGHT:
            identifier = f"{caption.image}\t{caption.split}/{self.lines[group]}"
            self.output.write(TEXTS, f"{caption.split}/{self.lines[group]}\t{text}")
        self.output.write(name, text)
        self.output.write(f"{name}.ids", identifier)
        self.lines[group] += 1
        if self.images.remember:
            self.order.setdefault(group, {})[caption.image] = None
            if caption.image in self.listed:
                return
            self.listed.add(caption.image)
        self.image_count += 1
        self.output.write(IMAGES, f"{caption.image}\t{path}")

    def _leave_out(self, caption: Caption, reason: str, message: str) -> None:
        self.left_out[reason] += 1
        self.examples.setdefault(reason, f"{caption.place}: {message}")
        if caption.split not in self.skippable or self.left_out.total() > self.budget:
            allowed = "" if caption.split not in self.skippable else f" (--skip-budget {self.budget} is used up)"
            raise UserError(f"{caption.place}: {message}{allowed}")

    def write_folds(self, split: str, size: int) -> dict[str, int] | None:
        """Write `SPLIT.folds.tsv`, runs of consecutive images, where the split divides into several of that size."""
        images = next((list(order) for (name, _), order in self.order.items() if name == split), [])
        if len(images) < 2 * size or len(images) % size:
            return None
        for number, image in enumerate(images):
            self.output.write(f"{split}.folds.tsv", f"{image}\t{number // size}")
        return {"folds": len(images) // size, "images": size}

    def splits(self) -> dict[str, dict[str, Any]]:
        """Split -> language -> files and counts."""
        described: dict[str, dict[str, Any]] = {}
        for (split, language), lines in self.lines.items():
            name = f"{split}.{language}"
            described.setdefault(split, {})[language] = {
                "captions": name,
                "ids": f"{name}.ids",
                "lines": lines,
                "images": self._images_of((split, language)),
            }
        return described

    def _images_of(self, group: tuple[str, str]) -> int:
        return len(self.order.get(group, ())) if self.images.remember else self.lines[group]

    def check(self, expected: Counts) -> None:
        """Compare with the published counts.

        Raises:
            UserError: another number of captions or images.
        """
        for group, (lines, images) in expected.items():
            for what, wanted, found in (
                ("captions", lines, self.lines[group]),
                ("images", images, self._images_of(group)),
            ):
                if self.lines[group] and wanted is not None and found != wanted:
                    raise UserError(
                        f"{'.'.join(group)}: {found} {what} where {wanted} were published; look for what is missing "
                        "or, if you use a part on purpose, give --expect-counts no"
                    )
