#!/usr/bin/env python3
"""Conceptual Captions 3M (CC3M): English captions of images of the web.

From the web site of "Conceptual Captions" (Sharma et al., 2018): `Train_GCC-training.tsv` (3,318,333 lines of caption,
tab, address) and `Validation_GCC-1.1.0-Validation.tsv` (15,840). The images are to be fetched by the user, for which
`img2dataset` is made; many are gone. Two ways from there:

- --tar 00000.tar ...: webdataset tars as img2dataset writes them (KEY.jpg, KEY.txt, KEY.json); the images are written
  below OUTPUT/images, which is what --root of mclip-features then names;
- --tsv FILE --images DIR: images by the line's number from 0, as img2dataset's "files" has them (00012/000123456.jpg),
  or in one folder (000123456.jpg).

Captions are mended (encoding, entities, markup, control characters, white space). Those without text or image are
counted, and left out up to --skip-budget.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from corpora.captions import Caption
from corpora.command import Corpus, Options, run
from corpora.files import fields
from corpora.pool import cores, in_order
from corpora.sources import Sources
from corpora.tars import unpack
from corpora.text import mend

SPLITS = ("train", "valid")
HEADER = ["caption", "url"]
SHARD = 10000


def add_options(parser: argparse.ArgumentParser) -> None:
    """Name the source files."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--tsv", type=Path, metavar="FILE", help="Train_GCC-training.tsv or the validation set's")
    source.add_argument("--tar", type=Path, nargs="+", metavar="FILE", help="webdataset tars")
    parser.add_argument("--split", choices=SPLITS, default="train", help="which split this is (train)")
    parser.add_argument("--workers", type=int, default=cores(), metavar="N", help=f"processes (all cores: {cores()})")


def read(options: Options, sources: Sources) -> Iterator[Caption]:
    """All captions, in the order of the source."""
    if options.tsv is not None:
        return read_tsv(sources.file(options.tsv), options.split)
    if options.images is not None:
        raise ValueError("--images goes with --tsv: tars hold their images")
    return read_tars(options, sources)


def read_tsv(path: Path, split: str) -> Iterator[Caption]:
    """Captions with their numbers as ids."""
    number = 0
    for place, row in fields(path, 2):
        # img2dataset wants a header, which some therefore add.
        if number == 0 and row[:2] == HEADER:
            continue
        name = f"{number:09d}.jpg"
        yield Caption(split, "en", name, mend(row[0]), place, (f"{number // SHARD:05d}/{name}", name))
        number += 1


def read_tars(options: Options, sources: Sources) -> Iterator[Caption]:
    """Captions of all tars; the images are unpacked on the way."""
    names = [path.name.partition(".")[0] for path in options.tar]
    if len(set(names)) < len(names):
        raise ValueError("two of the tars have the same name, which their images would share")
    for path in options.tar:
        if not path.is_file():
            raise ValueError(f"{path}: not found; --help says where the data are from and how they must lie")
    work = partial(unpack, folder=options.output / "images")
    for shard in in_order(work, options.tar, options.workers):
        sources.take(shard.path, shard.digest)
        for image, text, place in shard.captions:
            yield Caption(options.split, "en", image, mend(text), place, (image,))
        for key in shard.missing:
            yield Caption(options.split, "en", key, "", str(shard.path), ())


def expected(options: Options) -> dict[tuple[str, str], tuple[int | None, int | None]]:
    """Published counts; nobody has all images any more."""
    if options.tsv is None or options.images is not None:
        return {}
    return {("train", "en"): (3318333, None), ("valid", "en"): (15840, None)}


CORPUS = Corpus(
    "Conceptual Captions 3M",
    add_options,
    read,
    expected=expected,
    notes=("Images vanish from the web: say how many pairs were trained on.",),
    skippable=frozenset(SPLITS),
    own_images=True,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run(CORPUS, __doc__, "cc3m.py", argv)


if __name__ == "__main__":
    sys.exit(main())
