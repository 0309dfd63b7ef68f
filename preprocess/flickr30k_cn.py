#!/usr/bin/env python3
"""Flickr30k-CN: Chinese captions of Flickr30k's images, in any of the formats in which it is distributed.

- `test_texts.jsonl` and the like from Chinese-CLIP (Yang et al., 2022): {"text_id", "text", "image_ids"};
- `flickr30k_cn_test.txt` from Flickr30k-CNA (Xie et al., 2023): lines of `NAME#N`, tab, text;
- the same set from CLIP_benchmark and InternVL: `NAME.jpg`, tab or comma, text, with or without a header;
- the original from Lan et al. (2017), lines of `NAME#zhN#N`, space, words with part-of-speech tags; give --segmented.

Images: Flickr30k (see flickr30k.py).
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import regex
from corpora.captions import Caption
from corpora.coco import image_paths
from corpora.command import Corpus, Options, run_corpus
from corpora.files import json_lines, numbered_lines, require
from corpora.sources import Sources
from corpora.text import join_segmented, looks_tagged

from mclip_fairseq.storage.errors import UserError

SPLITS = ("train", "valid", "test")
HEADER = regex.compile(r"image(_id|_name|id)?[,\t](caption|text|comment)s?", regex.IGNORECASE)
LINE = regex.compile(r"(?P<name>\d+)(?:\.jpg)?(?:#[\w#]*)?(?P<separator>[\t,]| +)(?P<text>.*)", regex.DOTALL)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Name the source files."""
    for split in SPLITS:
        parser.add_argument(f"--{split}", type=Path, metavar="FILE", help=f"captions of {split}, .jsonl or .txt")
    parser.add_argument("--segmented", action="store_true", help="join words and remove their part-of-speech tags")


def read(options: Options, sources: Sources) -> Iterator[Caption]:
    """All captions of the given files."""
    files = {split: getattr(options, split) for split in SPLITS if getattr(options, split) is not None}
    if not files:
        raise UserError("give at least one of --train, --valid and --test")
    for split, path in files.items():
        pairs = read_jsonl(sources.file(path)) if path.suffix == ".jsonl" else read_text(sources.file(path))
        for place, number, text in pairs:
            if looks_tagged(text) and not options.segmented:
                raise UserError(
                    f"{place}: has part-of-speech tags, which no encoder was trained on; give --segmented to remove "
                    "them"
                )
            image = f"{number}.jpg"
            yield Caption(
                split, "zh", image, join_segmented(text) if options.segmented else text, place, image_paths(image)
            )


def read_jsonl(path: Path) -> Iterator[tuple[str, str, str]]:
    """(place, image number, caption) in Chinese-CLIP's format."""
    for place, record in json_lines(path):
        text = require(record, "text", str, place)
        for image in require(record, "image_ids", list, place):
            yield place, str(image).removesuffix(".jpg"), text


def read_text(path: Path) -> Iterator[tuple[str, str, str]]:
    """(place, image number, caption) in the other formats."""
    for count, (place, line) in enumerate(numbered_lines(path)):
        if not line.strip() or (count == 0 and HEADER.fullmatch(line.strip())):
            continue
        match = LINE.fullmatch(line)
        if match is None:
            raise UserError(
                f"{place}: is not of the form '1007129816#0, tab, caption' or '1007129816.jpg, comma, caption'; check "
                "that this is a "
                "file --help names"
            )
        text = match["text"]
        # As csv writers quote a caption that holds a comma.
        if match["separator"] == "," and len(text) > 1 and text.startswith('"') and text.endswith('"'):
            text = text[1:-1].replace('""', '"')
        yield place, match["name"], text


CORPUS = Corpus(
    "Flickr30k-CN",
    add_options,
    read,
    expected={("test", "zh"): (5000, 1000)},
    notes=("Some copies have part-of-speech tags or are segmented; numbers on those are too low.",),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_corpus(CORPUS, __doc__, "flickr30k_cn.py", argv)


if __name__ == "__main__":
    sys.exit(main())
