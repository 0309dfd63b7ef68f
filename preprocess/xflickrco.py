#!/usr/bin/env python3
"""xFlickr&CO of IGLUE: one caption in each of eight languages of 1,000 images of Flickr30k and 1,000 of COCO 2014.

From the repository iglue (Bugliarello et al., 2022), folder `datasets/xFlickrCO/annotations`: `LANG/test.jsonl` and,
for few-shot training, `LANG/train_N.jsonl`. Images: those of Flickr30k and of COCO, below one folder.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from corpora.captions import Caption
from corpora.coco import image_paths
from corpora.command import Corpus, Options, run
from corpora.files import json_lines, member, unique
from corpora.sources import Sources

LANGUAGES = ("en", "de", "es", "id", "ja", "ru", "tr", "zh")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Name the source files."""
    parser.add_argument("--annotations", type=Path, required=True, metavar="DIR", help="datasets/xFlickrCO/annotations")
    parser.add_argument("--languages", nargs="+", choices=LANGUAGES, default=LANGUAGES, help="which to take (all)")
    parser.add_argument("--shots", type=int, metavar="N", help="take train_N.jsonl too, where a language has it")


def read(options: Options, sources: Sources) -> Iterator[Caption]:
    """All captions, language by language."""
    for lang in options.languages:
        folder = options.annotations / lang
        yield from read_file(sources.file(folder / "test.jsonl"), "test", lang)
        if options.shots is not None and lang != "en":
            yield from read_file(sources.file(folder / f"train_{options.shots}.jsonl"), "train", lang)


def read_file(path: Path, split: str, lang: str) -> Iterator[Caption]:
    """The captions of a file of IGLUE's form; a test image is there once."""
    records = json_lines(path)
    if split == "test":
        records = unique(records, lambda record: member(record, "img_path", str, str(path)), "image")
    for place, record in records:
        image = Path(member(record, "img_path", str, place)).name
        for text in member(record, "sentences", list, place):
            yield Caption(split, lang, image, str(text), place, image_paths(image))


CORPUS = Corpus(
    "xFlickr&CO (IGLUE)",
    add_options,
    read,
    expected={("test", lang): (2000, 2000) for lang in LANGUAGES},
    notes=(
        "IGLUE and CCRK average over the seven languages that are not English.",
        "CCRK's rank variance is over en, de, ja and zh, as a standard deviation in its released code.",
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run(CORPUS, __doc__, "xflickrco.py", argv)


if __name__ == "__main__":
    sys.exit(main())
