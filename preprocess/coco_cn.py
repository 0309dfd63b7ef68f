#!/usr/bin/env python3
"""COCO-CN: Chinese captions of 20,341 images of COCO 2014, with its own split.

Available from its authors upon request (Li et al., 2019), version 201805: a folder `coco-cn-version1805v1.1` with
`coco-cn_{train,val,test}.txt` (image names) and `imageid.human-written-caption.txt` (lines of `NAME#N`, tab, text);
`imageid.manually-translated-caption.txt` has 5,000 translated captions of the test images. Images: see coco.py.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from corpora.captions import Caption
from corpora.coco import image_paths
from corpora.command import Corpus, Options, run_corpus
from corpora.files import numbered_lines, unique
from corpora.sources import Sources

from mclip_fairseq.storage.errors import UserError

SPLITS = {"train": "train", "val": "valid", "test": "test"}
FILES = {"written": "imageid.human-written-caption.txt", "translated": "imageid.manually-translated-caption.txt"}
NAMES = {"written": "COCO-CN", "translated": "COCO-CN (translated captions)"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Name the source files."""
    parser.add_argument("--folder", type=Path, required=True, metavar="DIR", help="coco-cn-version1805v1.1")
    choices = tuple(FILES)
    parser.add_argument(
        "--captions", choices=choices, default=choices[0], help="which captions to use (default: written)"
    )


def read_splits(folder: Path, sources: Sources) -> dict[str, str]:
    """Image -> split."""
    names: list[tuple[str, tuple[str, str]]] = []
    for part, split in SPLITS.items():
        lines = numbered_lines(sources.file(folder / f"coco-cn_{part}.txt"))
        names += [(place, (line.strip(), split)) for place, line in lines if line.strip()]
    return dict(item for _, item in unique(names, lambda item: item[0], "image"))


def read(options: Options, sources: Sources) -> Iterator[Caption]:
    """All captions, in the order of the file."""
    splits = read_splits(options.folder, sources)
    lines = (
        (place, line.partition("\t"))
        for place, line in numbered_lines(sources.file(options.folder / FILES[options.captions]))
        if line.strip()
    )
    for place, (key, tab, text) in unique(lines, lambda parts: parts[0], "caption"):
        name, mark, number = key.strip().rpartition("#")
        if not (tab and mark and number.isdecimal()):
            raise UserError(
                f"{place}: is not of the form 'COCO_val2014_000000000042#0, tab, caption'; check that this is the "
                "file --help names"
            )
        if name not in splits:
            raise UserError(
                f"{place}: the image {name} is in none of coco-cn_train.txt, _val.txt and _test.txt; download the "
                "folder again"
            )
        image = f"{name}.jpg"
        yield Caption(splits[name], "zh", image, text, place, image_paths(image))


CORPUS = Corpus(
    lambda options: NAMES[options.captions],
    add_options,
    read,
    expected={("valid", "zh"): (None, 1000), ("test", "zh"): (None, 1000)},
    notes=("In the literature, COCO-zh means the 1,000 test images with the captions that people wrote.",),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_corpus(CORPUS, __doc__, "coco_cn.py", argv)


if __name__ == "__main__":
    sys.exit(main())
