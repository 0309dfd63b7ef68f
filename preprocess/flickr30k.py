#!/usr/bin/env python3
"""Flickr30k captions in English, five per image, with the split of Karpathy and Fei-Fei.

From the download page of "Deep Visual-Semantic Alignments for Generating Image Descriptions": `dataset_flickr30k.json`
(in `caption_datasets.zip`). Images: Flickr30k (Young et al., 2014), from its authors upon request.

Writes train (29,000 images), valid (1,014) and test (1,000): the images of Multi30K's train, valid and
test_2016_flickr.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from corpora.captions import Caption
from corpora.command import Corpus, Options, run_corpus
from corpora.karpathy import ARCHIVE, FLICKR30K, read_karpathy
from corpora.sources import Sources


def add_options(parser: argparse.ArgumentParser) -> None:
    """Name the source files."""
    parser.add_argument("--karpathy", type=Path, required=True, metavar="FILE", help=f"{FLICKR30K}, or {ARCHIVE}")


def read(options: Options, sources: Sources) -> Iterator[Caption]:
    """All captions."""
    return read_karpathy(sources.file(options.karpathy), FLICKR30K)


CORPUS = Corpus(
    "Flickr30k (Karpathy split)",
    add_options,
    read,
    expected={("train", "en"): (145000, 29000), ("valid", "en"): (5070, 1014), ("test", "en"): (5000, 1000)},
    notes=("Five captions per image; Multi30K task 1 has one caption of each of the same images.",),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_corpus(CORPUS, __doc__, "flickr30k.py", argv)


if __name__ == "__main__":
    sys.exit(main())
