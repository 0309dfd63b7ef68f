"""Karpathy and Fei-Fei's split files `dataset_coco.json` and `dataset_flickr30k.json`, also in their zip archive."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from corpora.captions import Caption
from corpora.coco import image_paths
from corpora.files import read_large_json, require, unique
from mclip_fairseq.storage.errors import UserError

COCO = "dataset_coco.json"
FLICKR30K = "dataset_flickr30k.json"
ARCHIVE = "caption_datasets.zip"
SPLITS = {"train": "train", "restval": "train", "val": "valid", "test": "test"}


@dataclass(frozen=True, slots=True)
class SplitImage:
    """An image of the split file, without its captions.

    Attributes:
        name: name of its file, which is its id.
        split: "train" (with "restval"), "valid" or "test".
        captions: the English captions.
        place: where it is in the file.
    """

    name: str
    split: str
    captions: tuple[str, ...]
    place: str


def read_split_images(path: Path, name: str = COCO) -> Iterator[SplitImage]:
    """All images in the order of the file, which is the order of the published folds.

    Args:
        path: the file, or the archive.
        name: of the file in the archive.

    Raises:
        UserError: the file has a different shape, or names an image twice.
    """
    images = require(read_large_json(path, drop=frozenset({"tokens", "sentids"}), name=name), "images", list, str(path))
    places = ((f"{path}, image {number}", image) for number, image in enumerate(images, 1))
    for place, image in unique(places, lambda image: require(image, "filename", str, str(path)), "image"):
        split = require(image, "split", str, place)
        if split not in SPLITS:
            raise UserError(f"{place}: the split {split!r} is not one of {', '.join(SPLITS)}")
        captions = tuple(require(it, "raw", str, place) for it in require(image, "sentences", list, place))
        yield SplitImage(image["filename"], SPLITS[split], captions, place)


def read_karpathy(path: Path, name: str = COCO) -> Iterator[Caption]:
    """The English captions; see `read_split_images`."""
    for image in read_split_images(path, name):
        for text in image.captions:
            yield Caption(image.split, "en", image.name, text, image.place, image_paths(image.name))
