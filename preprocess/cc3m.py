#!/usr/bin/env python3
"""Conceptual Captions 3M (CC3M): English captions of images of the web.

From the web site of "Conceptual Captions" (Sharma et al., 2018): `Train_GCC-training.tsv` (3,318,333 lines of caption,
tab, address) and `Validation_GCC-1.1.0-Validation.tsv` (15,840). The images are to be fetched by the user, for which
`img2dataset` is made; many are gone. Two ways from there, each with both splits in one call:

- --tar train/00000.tar ... --valid-tar valid/00000.tar ...: webdataset tars as img2dataset writes them (KEY.jpg,
  KEY.txt, KEY.json); the images are written below OUTPUT/images, which is what --root of mclip-features then names;
- --tsv FILE --valid-tsv FILE --images DIR: images below DIR/train and DIR/valid, by the line's number from 0, as
  img2dataset's "files" has them (00012/000123456.jpg), or in one folder (000123456.jpg).

Both splits number their images from 0: an image's id begins with its split, as in train/00000/000000000.jpg.
Captions are mended (encoding, entities, markup, control characters, white space). Those without text or image are
counted, and left out up to --skip-budget.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from corpora.captions import TRAIN, Caption
from corpora.command import Corpus, Options, run
from corpora.files import fields
from corpora.pool import cores, in_order
from corpora.sources import Sources
from corpora.tars import unpack
from corpora.text import mend

from mclip_fairseq.storage.errors import UserError

# Split -> what its options begin with.
SPLITS = {TRAIN: "", "valid": "valid_"}
HEADER = ["caption", "url"]
SHARD = 10000


def add_options(parser: argparse.ArgumentParser) -> None:
    """Name the source files."""
    parser.add_argument("--tsv", type=Path, metavar="FILE", help="Train_GCC-training.tsv")
    parser.add_argument("--valid-tsv", type=Path, metavar="FILE", help="Validation_GCC-1.1.0-Validation.tsv")
    for option, split in (("--tar", TRAIN), ("--valid-tar", "valid")):
        parser.add_argument(option, type=Path, nargs="+", metavar="FILE", help=f"webdataset tars of {split}")
    parser.add_argument("--workers", type=int, default=cores(), metavar="N", help=f"processes (all cores: {cores()})")


def read(options: Options, sources: Sources) -> Iterator[Caption]:
    """All captions, train first, in the order of the source.

    Raises:
        UserError: neither tables nor tars are given, or both, or images beside tars.
    """
    tables = given(options, "tsv")
    tars = given(options, "tar")
    if bool(tables) == bool(tars):
        raise UserError("give either --tsv and --valid-tsv or --tar and --valid-tar")
    if tars and options.images is not None:
        raise UserError("--images goes with --tsv: tars hold their images")
    for split, path in tables.items():
        yield from read_tsv(sources.file(path), split)
    for split, paths in tars.items():
        yield from read_tars(options, paths, split, sources)


def given(options: Options, form: str) -> dict[str, Any]:
    """Split -> its source in that form, where there is one."""
    named = {split: getattr(options, prefix + form) for split, prefix in SPLITS.items()}
    return {split: source for split, source in named.items() if source is not None}


def read_tsv(path: Path, split: str) -> Iterator[Caption]:
    """Captions with their splits and numbers as ids."""
    number = 0
    for place, row in fields(path, 2):
        # img2dataset wants a header, which some therefore add.
        if number == 0 and row[:2] == HEADER:
            continue
        name = f"{number:09d}.jpg"
        paths = (f"{split}/{number // SHARD:05d}/{name}", f"{split}/{name}")
        yield Caption(split, "en", f"{split}/{name}", mend(row[0]), place, paths)
        number += 1


def read_tars(options: Options, paths: Sequence[Path], split: str, sources: Sources) -> Iterator[Caption]:
    """Captions of all tars of a split; the images are unpacked on the way."""
    names = [path.name.partition(".")[0] for path in paths]
    if len(set(names)) < len(names):
        raise UserError(f"two of the tars of {split} have the same name, which their images would share; rename one")
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: not found; --help says where the data are from and how they must lie")
    work = partial(unpack, folder=options.output / "images" / split)
    for shard in in_order(work, paths, options.workers):
        sources.take(shard.path, shard.digest)
        for image, text, place in shard.captions:
            name = f"{split}/{image}"
            yield Caption(split, "en", name, mend(text), place, (name,))
        for key in shard.missing:
            yield Caption(split, "en", key, "", str(shard.path), ())


def expected(options: Options) -> dict[tuple[str, str], tuple[int | None, int | None]]:
    """Published counts; nobody has all images any more."""
    if options.images is not None or not given(options, "tsv"):
        return {}
    return {(TRAIN, "en"): (3318333, None), ("valid", "en"): (15840, None)}


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
