#!/usr/bin/env python3
"""VizWiz-Captions: English captions of photos that blind people took, five for most images.

From the web site of VizWiz (Gurari et al., ECCV 2020): `train.json` and `val.json` of the captions' annotations; those
of the test set are not public. Images: `train` and `val` of the same site, in one folder or in a folder of that name.

A worker who could not recognise a photo gave a canned sentence, and some captions were rejected as spam. Both are
marked in the files and left out, and their numbers are printed; --canned keep writes them, too.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from corpora.captions import TRAIN, Caption
from corpora.command import Corpus, Options, run_corpus
from corpora.files import read_large_json, require, unique
from corpora.sources import Sources

from mclip_fairseq.storage.errors import UserError

# Name of a file -> split.
SPLITS = {"train.json": TRAIN, "val.json": "valid"}
UNUSED = frozenset({"info", "text_detected", "vizwiz_url"})
MARKS = {"is_precanned": "canned", "is_rejected": "rejected"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Name the source files."""
    parser.add_argument(
        "--annotations", type=Path, nargs="+", required=True, metavar="FILE", help="train.json, val.json, or both"
    )
    parser.add_argument(
        "--canned",
        choices=("leave-out", "keep"),
        default="leave-out",
        help="what becomes of captions that are canned or rejected (default: leave-out)",
    )


def read(options: Options, sources: Sources) -> Iterator[Caption]:
    """All captions, in the order of the files.

    Raises:
        UserError: a file has another name or shape.
    """
    for path in options.annotations:
        split = SPLITS.get(path.name.removesuffix(".gz"))
        if split is None:
            raise UserError(f"{path}: is not one of {', '.join(SPLITS)}; give the files under their published names")
        yield from read_split(sources.file(path), split, options.canned == "keep")


def read_split(path: Path, split: str, keep: bool) -> Iterator[Caption]:
    """The captions of one file; what is left out is counted and printed."""
    data = read_large_json(path, drop=UNUSED)
    images = {
        require(image, "id", int, str(path)): require(image, "file_name", str, str(path))
        for image in require(data, "images", list, str(path))
    }
    places = (
        (f"{path}, annotation {number}", item)
        for number, item in enumerate(require(data, "annotations", list, str(path)), 1)
    )
    left_out: Counter[str] = Counter()
    folder = path.name.partition(".")[0]
    for place, item in unique(places, lambda item: require(item, "id", int, str(path)), "annotation id"):
        number = require(item, "image_id", int, place)
        if number not in images:
            raise UserError(f"{place}: names image {number}, which is not among the images of the file")
        marks = [name for mark, name in MARKS.items() if require(item, mark, bool, place)]
        if marks and not keep:
            left_out[marks[0]] += 1
            continue
        name = images[number]
        paths = (f"{folder}/{name}", name)
        yield Caption(split, "en", name, require(item, "caption", str, place), place, paths)
    if left_out:
        numbers = ", ".join(f"{count} {name}" for name, count in left_out.items())
        print(f"{split}: {numbers} captions are left out", file=sys.stderr)


def expected(options: Options) -> dict[tuple[str, str], tuple[int | None, int | None]]:
    """Published counts, with all captions."""
    if options.canned != "keep":
        return {}
    return {(TRAIN, "en"): (117155, 23431), ("valid", "en"): (38750, 7750)}


CORPUS = Corpus(
    "VizWiz-Captions",
    add_options,
    read,
    expected=expected,
    notes=("Canned and rejected captions are left out unless --canned keep was given.",),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_corpus(CORPUS, __doc__, "vizwiz.py", argv)


if __name__ == "__main__":
    sys.exit(main())
