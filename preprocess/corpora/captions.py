"""Captions of images on their way from a reader to the project's files."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from corpora.images import ImageFolder
from corpora.output import Output
from corpora.text import one_line
from mclip_fairseq.storage.errors import UserError

TRAIN = "train"
# No white space, no control characters, and no lone surrogates, which JSON may hold and UTF-8 cannot encode.
SAFE_NAME = re.compile(r"(?!/)(?!.*\.\.)[^\s\x00-\x1f\x7f-\x9f\ud800-\udfff]+")
TEXTS = "texts.en.tsv"
# Splits whose English captions the teacher encodes.
TEACHER_SPLITS = (TRAIN, "valid")
IMAGES = "images.tsv"
PUBLISHED_EMPTY = "empty in the published file"
Group = tuple[str, str]
Counts = Mapping[Group, tuple[int | None, int | None]]


@dataclass(frozen=True, slots=True)
class Caption:
    """A caption as a reader yields it.

    Attributes:
        split: for example "train" or "test_2016_flickr".
        language: its code.
        image: id of the image, unique in the dataset: the name of its file.
        text: as in the source.
        place: where it is in the source, for messages.
        paths: where the image may be below the image folder, the usual place first; none if it is known to be missing.
        unused: why the source has no caption here, which is no error; counted, and not against the budget.
    """

    split: str
    language: str
    image: str
    text: str
    place: str
    paths: tuple[str, ...]
    unused: str = ""


@dataclass(frozen=True)
class Skipping:
    """Which captions may be left out.

    Attributes:
        budget: how many may be empty or lack their image, in the splits below.
        splits: where the budget applies; elsewhere a caption is never left out. None: everywhere.
        known_empty: (language, image) of captions that the published set itself has empty, in any split; they do not
            count against the budget.
    """

    budget: int = 0
    splits: frozenset[str] | None = frozenset()
    known_empty: frozenset[tuple[str, str]] = frozenset()


class CaptionWriter:
    """Writes `SPLIT.LANG`, `SPLIT.LANG.ids`, `images.tsv` and, for English, `texts.en.tsv`.

    A line of `.ids` is the image id. English captions of train and valid also have, after a tab, their id in
    `texts.en.tsv`, from which the teacher's text features are made.

    Args:
        output: where they go.
        images: where the images are.
        skipping: which captions may be left out.
        names: which ids of images are valid.
    """

    def __init__(
        self, output: Output, images: ImageFolder, skipping: Skipping, names: re.Pattern[str] = SAFE_NAME
    ) -> None:
        self.output = output
        self.images = images
        self.skipping = skipping
        self.names = names
        self.lines: Counter[Group] = Counter()
        # Image ids in the order in which they came, per split and language; a dict is an ordered set.
        self.order: dict[Group, dict[str, None]] = {}
        self.listed: set[str] = set()
        self.image_count = 0
        self.left_out: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.budget_used = 0
        self.published_empty: Counter[Group] = Counter()
        self.published_empty_names: list[str] = []

    def write(self, captions: Iterable[Caption]) -> None:
        """Write all captions.

        Raises:
            UserError: an empty caption or a missing image beyond what may be left out, an invalid image name, or no
                caption at all.
        """
        for caption in captions:
            if caption.unused:
                self._count(caption.unused, caption.place)
                continue
            if not self.names.fullmatch(caption.image):
                raise UserError(f"{caption.place}: {caption.image!r} is not a valid image name")
            text = one_line(caption.text)
            path = self.images.path(caption.image, caption.paths)
            if not text and (caption.language, caption.image) in self.skipping.known_empty:
                self._leave_out_published_empty(caption)
            elif path is None:
                self._leave_out(caption, "missing image", self.images.why_missing(caption.image, caption.paths))
            elif text:
                self._write(caption, text, path)
            else:
                self._leave_out(caption, "empty", f"the caption of {caption.image} is empty")
        if not self.lines:
            raise UserError("the source files hold no caption of the chosen splits and languages")

    def _write(self, caption: Caption, text: str, path: str) -> None:
        group = (caption.split, caption.language)
        name = f"{caption.split}.{caption.language}"
        identifier = caption.image
        if caption.language == "en" and caption.split in TEACHER_SPLITS:
            identifier = f"{caption.image}\t{caption.split}/{self.lines[group]}"
            self.output.write(TEXTS, f"{caption.split}/{self.lines[group]}\t{text}", caption.place)
        self.output.write(name, text, caption.place)
        self.output.write(f"{name}.ids", identifier)
        self.lines[group] += 1
        if self.images.remember:
            self.order.setdefault(group, {})[caption.image] = None
            if caption.image in self.listed:
                return
            self.listed.add(caption.image)
        self.image_count += 1
        self.output.write(IMAGES, f"{caption.image}\t{path}")

    def _leave_out_published_empty(self, caption: Caption) -> None:
        self.published_empty[caption.split, caption.language] += 1
        self.published_empty_names.append(f"{caption.split}.{caption.language} {caption.image}")
        self._count(PUBLISHED_EMPTY, f"{caption.place}: the caption of {caption.image}")

    def _count(self, reason: str, example: str) -> None:
        self.left_out[reason] += 1
        self.examples.setdefault(reason, example)

    def _leave_out(self, caption: Caption, reason: str, message: str) -> None:
        self._count(reason, f"{caption.place}: {message}")
        self.budget_used += 1
        if self.skipping.splits is not None and caption.split not in self.skipping.splits:
            remedy = "; fix the source"
            if reason == "empty":
                remedy = f"; if the published file has it empty, give --known-empty {caption.language}:{caption.image}"
            raise UserError(f"{caption.place}: {message}{remedy}")
        if self.budget_used > self.skipping.budget:
            raise UserError(f"{caption.place}: {message} (--skip-budget {self.skipping.budget} is used up)")

    def write_folds(self, split: str, size: int) -> dict[str, int] | None:
        """Write `SPLIT.folds.tsv`, runs of `size` consecutive images, if the split divides into several."""
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

    def _images_of(self, group: Group) -> int:
        return len(self.order.get(group, ())) if self.images.remember else self.lines[group]

    def check_counts(self, expected: Counts) -> None:
        """Compare with the published counts, less the captions that the published files have empty.

        Raises:
            UserError: the numbers of captions or images differ.
        """
        for group, published in expected.items():
            counts = self.lines[group], self._images_of(group)
            for what, wanted, count in zip(("captions", "images"), published, counts, strict=True):
                # A caption left out takes its image along only if the image has no other caption.
                least = (wanted or 0) - self.published_empty[group]
                fits = count == least if what == "captions" else least <= count <= (wanted or 0)
                if self.lines[group] and wanted is not None and not fits:
                    raise UserError(
                        f"{'.'.join(group)}: has {count} {what}, but {wanted} were published; look for what is missing "
                        "or, if you use a part on purpose, give --expect-counts no"
                    )

    def facts(self) -> dict[str, Any]:
        """What the manifest says about images, splits and what was left out."""
        facts: dict[str, Any] = {
            "images": {"list": IMAGES, "count": self.image_count, "checked": self.images.root is not None},
            "splits": self.splits(),
            "left_out": {reason: [count, self.examples[reason]] for reason, count in self.left_out.items()},
        }
        if self.published_empty_names:
            facts["published_empty"] = self.published_empty_names
        return facts

    def summary(self) -> str:
        """Counts, one line per split and language, and what was left out."""
        lines = [f"{self.output.folder}: {self.image_count} images"]
        for split, languages in self.splits().items():
            lines += [
                f"  {split}.{lang}: {it['lines']} captions of {it['images']} images" for lang, it in languages.items()
            ]
        lines += [
            f"  left out, {reason}: {count}; first {self.examples[reason]}" for reason, count in self.left_out.items()
        ]
        lines += [f"  left out, {PUBLISHED_EMPTY}: {name}" for name in self.published_empty_names[1:]]
        return "\n".join(lines)
