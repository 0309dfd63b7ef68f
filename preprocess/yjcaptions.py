#!/usr/bin/env python3
"""YJ Captions 26k: Japanese captions of 26,500 images of COCO's train2014.

From the repository YJCaptions of Yahoo Japan (Miyazaki and Shimizu, 2016): `yjcaptions26k_clean.json` (in
`yjcaptions26k.zip`). It has no split: with --karpathy, images follow the split of MSCOCO (see coco.py); without,
all are for training. Images: see coco.py.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from corpora.captions import TRAIN, Caption
from corpora.coco import image_number, image_paths, read_annotations
from corpora.command import Corpus, Options, run_corpus
from corpora.karpathy import ARCHIVE, COCO, read_split_images
from corpora.sources import Sources

from mclip_fairseq.storage.errors import UserError


def add_options(parser: argparse.ArgumentParser) -> None:
    """Name the source files."""
    parser.add_argument("--captions", type=Path, required=True, metavar="FILE", help="yjcaptions26k_clean.json")
    parser.add_argument(
        "--karpathy", type=Path, metavar="FILE", help=f"{COCO} or {ARCHIVE}, to keep its test images out of train"
    )


def read(options: Options, sources: Sources) -> Iterator[Caption]:
    """All captions, in the order of the file."""
    splits: dict[int, tuple[str, str]] = {}
    if options.karpathy is not None:
        images = read_split_images(sources.file(options.karpathy))
        splits = {image_number(image.name, image.place): (image.split, image.name) for image in images}
    for annotation in read_annotations(sources.file(options.captions)):
        name = f"COCO_train2014_{annotation.image:012d}.jpg"
        if splits and annotation.image not in splits:
            raise UserError(
                f"{annotation.place}: the image {annotation.image} is not in {options.karpathy}; give the whole split "
                "file"
            )
        split, name = splits.get(annotation.image, (TRAIN, name))
        yield Caption(split, "ja", name, annotation.text, annotation.place, image_paths(name))


CORPUS = Corpus(
    "YJ Captions 26k",
    add_options,
    read,
    expected={("train", "ja"): (131740, 26500)},
    notes=("In the literature, COCO-ja means STAIR Captions or YJ Captions; this is YJ Captions.",),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_corpus(CORPUS, __doc__, "yjcaptions.py", argv)


if __name__ == "__main__":
    sys.exit(main())
