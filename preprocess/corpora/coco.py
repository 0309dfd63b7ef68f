"""Annotation files in COCO's own format, and the paths of images of COCO 2014 and Flickr30k."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from corpora.files import read_large_json, require, unique
from mclip_fairseq.storage.errors import UserError


@dataclass(frozen=True, slots=True)
class Annotation:
    """A caption of an image, which is identified by its number."""

    image: int
    text: str
    place: str


def read_annotations(path: Path) -> Iterator[Annotation]:
    """All captions of a file `{"annotations": [{"id", "image_id", "caption"}, ...], ...}`.

    Raises:
        UserError: the file has a different shape, or an annotation id occurs twice.
    """
    data = read_large_json(path, drop=frozenset({"images", "licenses", "info", "tokenized_caption"}))
    places = (
        (f"{path}, annotation {number}", item)
        for number, item in enumerate(require(data, "annotations", list, str(path)), 1)
    )
    for place, item in unique(places, lambda item: require(item, "id", int, str(path)), "annotation id"):
        yield Annotation(require(item, "image_id", int, place), require(item, "caption", str, place), place)


def image_number(name: str, place: str) -> int:
    """The number in `COCO_val2014_000000391895.jpg`.

    Raises:
        UserError: the name has a different form.
    """
    number = name.removesuffix(".jpg").rpartition("_")[2]
    if not number.isdecimal():
        raise UserError(f"{place}: {name!r} is not a file name of COCO 2014, such as COCO_val2014_000000391895.jpg")
    return int(number)


def image_paths(name: str) -> tuple[str, ...]:
    """Where an image may be below the image folder: COCO's in the folder that its name gives, Flickr30k's flat."""
    if name.startswith("COCO_train2014_"):
        return f"train2014/{name}", name
    if name.startswith("COCO_val2014_"):
        return f"val2014/{name}", name
    return name, f"flickr30k-images/{name}", f"flickr30k_images/{name}"
