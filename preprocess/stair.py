#!/usr/bin/env python3
"""STAIR Captions: five Japanese captions per image of COCO 2014, with the split of Karpathy and Fei-Fei.

From the STAIR Captions web site (Yoshikawa et al., 2017), version 1.2: `stair_captions_v1.2_train.json` and
`stair_captions_v1.2_val.json`, which include the test captions. The split is that of `dataset_coco.json` (see coco.py),
so images and folds are the same as in the English set. Images: see coco.py.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from corpora.captions import Caption
from corpora.coco import Annotation, image_number, image_paths, read_annotations
from corpora.command import Corpus, Options, run_corpus
from corpora.karpathy import ARCHIVE, COCO, read_split_images
from corpora.sources import Sources

from mclip_fairseq.storage.errors import UserError


def add_options(parser: argparse.ArgumentParser) -> None:
    """Name the source files."""
    parser.add_argument("--captions", type=Path, nargs="+", required=True, metavar="FILE", help="both JSON files")
    parser.add_argument("--karpathy", type=Path, required=True, metavar="FILE", help=f"{COCO}, or {ARCHIVE}")


def read(options: Options, sources: Sources) -> Iterator[Caption]:
    """All captions, image by image in the order of the split file."""
    annotations: dict[int, list[Annotation]] = {}
    for annotation in chain.from_iterable(read_annotations(sources.file(path)) for path in options.captions):
        annotations.setdefault(annotation.image, []).append(annotation)
    for image in read_split_images(sources.file(options.karpathy)):
        captions = annotations.pop(image_number(image.name, image.place), [])
        if not captions:
            raise UserError(f"{image.place}: {image.name} has no Japanese caption in --captions; give both JSON files")
        for annotation in captions:
            yield Caption(image.split, "ja", image.name, annotation.text, annotation.place, image_paths(image.name))
    if annotations:
        extra = next(iter(annotations.values()))[0]
        raise UserError(
            f"{extra.place}: the image {extra.image} is not in {options.karpathy}; give the whole split file"
        )


CORPUS = Corpus(
    "STAIR Captions (Karpathy split of MSCOCO)",
    add_options,
    read,
    expected={("train", "ja"): (566435, 113287), ("valid", "ja"): (25000, 5000), ("test", "ja"): (25000, 5000)},
    notes=("In the literature, COCO-ja means STAIR Captions or YJ Captions; this is STAIR.",),
    folds={"valid": 1000, "test": 1000},
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_corpus(CORPUS, __doc__, "stair.py", argv)


if __name__ == "__main__":
    sys.exit(main())
