#!/usr/bin/env python3
"""MSCOCO captions in English with the split of Karpathy and Fei-Fei.

From the download page of "Deep Visual-Semantic Alignments for Generating Image Descriptions": `dataset_coco.json` (in
`caption_datasets.zip`). Images: `train2014` and `val2014` from the COCO web site, in one folder.

Writes train (with restval, 113,287 images), valid and test (5,000 each). `test.folds.tsv` and `valid.folds.tsv` list
the folds of 1,000 images over which "COCO 1K" is averaged; "COCO 5K" is the whole split.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from corpora.captions import Caption
from corpora.command import Corpus, Options, run_corpus
from corpora.karpathy import ARCHIVE, COCO, read_karpathy
from corpora.sources import Sources

NOTES = (
    "COCO 1K: the mean over the folds; COCO 5K: all images of the split.",
    "train is Karpathy's train and restval.",
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Name the source files."""
    parser.add_argument("--karpathy", type=Path, required=True, metavar="FILE", help=f"{COCO}, or {ARCHIVE}")


def read(options: Options, sources: Sources) -> Iterator[Caption]:
    """All captions."""
    return read_karpathy(sources.file(options.karpathy))


CORPUS = Corpus(
    "MSCOCO (Karpathy split)",
    add_options,
    read,
    expected={("train", "en"): (566747, 113287), ("valid", "en"): (25010, 5000), ("test", "en"): (25010, 5000)},
    notes=NOTES,
    folds={"valid": 1000, "test": 1000},
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_corpus(CORPUS, __doc__, "coco.py", argv)


if __name__ == "__main__":
    sys.exit(main())
