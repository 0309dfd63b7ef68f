#!/usr/bin/env python3
"""Conceptual Captions 3M (CC3M): English captions of images of the web.

From the web site of "Conceptual Captions" (Sharma et al., 2018): `Train_GCC-training.tsv` (3,318,333 lines of caption,
tab, URL) and `Validation_GCC-1.1.0-Validation.tsv` (15,840). Download the images yourself, for example with
`img2dataset`; many no longer exist. Then use one of two ways, each with both splits in one call:

- --tar train/00000.tar ... --valid-tar valid/00000.tar ...: webdataset tars from img2dataset (KEY.jpg, KEY.txt,
  KEY.json); the images are written to OUTPUT/images, which --root of mclip-features then names;
- --tsv FILE --valid-tsv FILE --images DIR: images in DIR/train and DIR/valid, named by their line number from 0, as in
  img2dataset's "files" format (00012/000123456.jpg), or in one folder (000123456.jpg).

Both splits number their images from 0, so an image's id begins with its split: train/00000/000000000.jpg. Captions are
cleaned (encoding, entities, markup, control characters, white space). Captions without text or image are counted, and
left out up to --skip-budget.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from corpora.captions import TRAIN, Caption
from corpora.command import Corpus, Options, run_corpus
from corpora.files import table_rows
from corpora.pool import in_order
from corpora.sources import Sources, check_file
from corpora.tars import extract_images
from corpora.text import clean_text

from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.machine import cores

# Split -> prefix of its options.
SPLITS = {TRAIN: "", "valid": "valid_"}
HEADER = ["caption", "url"]
SHARD = 10000


def add_options(parser: argparse.ArgumentParser) -> None:
    """Name the source files."""
    parser.add_argument("--tsv", type=Path, metavar="FILE", help="Train_GCC-training.tsv")
    parser.add_argument("--valid-tsv", type=Path, metavar="FILE", help="Validation_GCC-1.1.0-Validation.tsv")
    for option, split in (("--tar", TRAIN), ("--valid-tar", "valid")):
        parser.add_argument(option, type=Path, nargs="+", metavar="FILE", help=f"webdataset tars of {split}")
    parser.add_argument(
        "--workers", type=int, default=cores(), metavar="N", help=f"processes (default: all cores, {cores()})"
    )


def read(options: Options, sources: Sources) -> Iterator[Caption]:
    """All captions, train first, in the order of the source.

    Raises:
        UserError: neither tables nor tars are given, or both, or --images with tars.
    """
    tables = sources_by_split(options, "tsv")
    tars = sources_by_split(options, "tar")
    if bool(tables) == bool(tars):
        raise UserError("give either --tsv and --valid-tsv or --tar and --valid-tar")
    if tars and options.images is not None:
        raise UserError("--images belongs to --tsv; tars hold their own images")
    for split, path in tables.items():
        yield from read_split(sources.file(path), split)
    for split, paths in tars.items():
        yield from read_tars(options, paths, split, sources)


def sources_by_split(options: Options, kind: str) -> dict[str, Any]:
    """Split -> value of its option --tsv or --tar, if given."""
    values = {split: getattr(options, prefix + kind) for split, prefix in SPLITS.items()}
    return {split: value for split, value in values.items() if value is not None}


def read_split(path: Path, split: str) -> Iterator[Caption]:
    """Captions of a split; an image is named by its line number."""
    number = 0
    for place, row in table_rows(path, 2):
        # img2dataset wants a header, so some copies have one.
        if number == 0 and row[:2] == HEADER:
            continue
        name = f"{number:09d}.jpg"
        paths = (f"{split}/{number // SHARD:05d}/{name}", f"{split}/{name}")
        yield Caption(split, "en", f"{split}/{name}", clean_text(row[0]), place, paths)
        number += 1


def read_tars(options: Options, paths: Sequence[Path], split: str, sources: Sources) -> Iterator[Caption]:
    """Captions of all tars of a split; their images are extracted on the way."""
    names = [path.name.partition(".")[0] for path in paths]
    if len(set(names)) < len(names):
        raise UserError(f"two of the tars of {split} have the same name, and their images would collide; rename one")
    for path in paths:
        check_file(path)
    work = partial(extract_images, folder=options.output / "images" / split)
    for shard in in_order(work, paths, options.workers):
        sources.register(shard.path, shard.digest)
        for image, text, place in shard.captions:
            name = f"{split}/{image}"
            yield Caption(split, "en", name, clean_text(text), place, (name,))
        for key in shard.missing:
            yield Caption(split, "en", key, "", str(shard.path), ())


def expected(options: Options) -> dict[tuple[str, str], tuple[int | None, int | None]]:
    """Published counts, for tables without images: nobody can download all images any more."""
    if options.images is not None or not sources_by_split(options, "tsv"):
        return {}
    return {(TRAIN, "en"): (3318333, None), ("valid", "en"): (15840, None)}


CORPUS = Corpus(
    "Conceptual Captions 3M",
    add_options,
    read,
    expected=expected,
    notes=("Images vanish from the web: report how many pairs you trained on.",),
    skippable=frozenset(SPLITS),
    own_images=True,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_corpus(CORPUS, __doc__, "cc3m.py", argv)


if __name__ == "__main__":
    sys.exit(main())
