"""Karpathy and Fei-Fei's split files `dataset_coco.json` and `dataset_flickr30k.json`."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from corpora.captions import Caption
from corpora.coco import image_paths
from corpora.files import member, read_json, unique

SPLITS = {"train": "train", "restval": "train", "val": "valid", "test": "test"}


@dataclass(frozen=True, slots=True)
class SplitImage:
    """An image of the split file, without its captions.

    Attributes:
        name: name of its file, which is its id.
        split: "train" (with "restval"), "valid" or "test".
        captions: the English captions.
        place: where it stands in the file.
    """

    name: str
    split: str
    captions: tuple[str, ...]
    place: str


def read_split(path: Path) -> Iterator[SplitImage]:
    """All images in the order of the file, which is that of the published folds.

    Raises:
        ValueError: the file is not of that shape, or names an image twice.
    """
    images = member(read_json(path, drop=frozenset({"tokens", "sentids"})), "images", list, str(path))
    places = ((f"{path}, image {number}", image) for number, image in enumerate(images, 1))
    for place, image in unique(places, lambda image: member(image, "filename", str, str(path)), "image"):
        split = member(image, "split", str, place)
        if split not in SPLITS:
            raise ValueError(f"{place}: the split {split!r} is not one of {', '.join(SPLITS)}")
        captions = tuple(member(it, "raw", str, place) for it in member(image, "sentences", list, place))
        yield SplitImage(image["filename"], SPLITS[split], captions, place)


def read_karpathy(path: Path) -> Iterator[Caption]:
    """The English captions of the file."""
    for image in read_split(path):
        for text in image.captions:
            yield Caption(image.split, "en", image.name, text, image.place, image_paths(image.name))
