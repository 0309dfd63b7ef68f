#!/usr/bin/env python3
"""Flickr30k-CN: Chinese captions of Flickr30k's images, in any of the forms it is passed on in.

- `test_texts.jsonl` and its like of Chinese-CLIP (Yang et al., 2022): {"text_id", "text", "image_ids"};
- `flickr30k_cn_test.txt` of Flickr30k-CNA (Xie et al., 2023): lines of `NAME#N`, tab, text;
- the same of CLIP_benchmark and InternVL: `NAME.jpg`, tab or comma, text, below a header or not;
- the original of Lan et al. (2017), lines of `NAME#zhN#N`, space, words with part-of-speech tags: with --segmented.

Images: those of Flickr30k (see flickr30k.py).
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import regex
from corpora.captions import Caption
from corpora.coco import image_paths
from corpora.command import Corpus, Options, run
from corpora.files import json_lines, member, numbered_lines
from corpora.sources import Sources
from corpora.text import join_segmented, looks_tagged

from mclip_fairseq.storage.errors import UserError

SPLITS = ("train", "valid", "test")
HEADER = regex.compile(r"image(_id|_name|id)?[,\t](caption|text|comment)s?", regex.IGNORECASE)
LINE = regex.compile(r"(?P<name>\d+)(?:\.jpg)?(?:#[\w#]*)?(?:[\t,]| +)(?P<text>.*)", regex.DOTALL)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Name the source files."""
    for split in SPLITS:
        parser.add_argument(f"--{split}", type=Path, metavar="FILE", help=f"captions of {split}, .jsonl or .txt")
    parser.add_argument("--segmented", action="store_true", help="join words and drop their tags")


def read(options: Options, sources: Sources) -> Iterator[Caption]:
    """All captions of the files that are given."""
    files = {split: getattr(options, split) for split in SPLITS if getattr(options, split) is not None}
    if not files:
        raise UserError("give at least one of --train, --valid and --test")
    for split, path in files.items():
        pairs = read_jsonl(sources.file(path)) if path.suffix == ".jsonl" else read_text(sources.file(path))
        for place, number, text in pairs:
            if looks_tagged(text) and not options.segmented:
                raise UserError(f"{place}: has part-of-speech tags, which no encoder was trained on; give --segmented")
            image = f"{number}.jpg"
            yield Caption(
                split, "zh", image, join_segmented(text) if options.segmented else text, place, image_paths(image)
            )


def read_jsonl(path: Path) -> Iterator[tuple[str, str, str]]:
    """(place, number of the image, caption) of Chinese-CLIP's form."""
    for place, record in json_lines(path):
        text = member(record, "text", str, place)
        for image in member(record, "image_ids", list, place):
            yield place, str(image).removesuffix(".jpg"), text


def read_text(path: Path) -> Iterator[tuple[str, str, str]]:
    """(place, number of the image, caption) of the other forms."""
    for count, (place, line) in enumerate(numbered_lines(path)):
        if not line.strip() or (count == 0 and HEADER.fullmatch(line.strip())):
            continue
        match = LINE.fullmatch(line)
        if match is None:
            raise UserError(f"{place}: write it as '1007129816#0, tab, caption' or '1007129816.jpg, comma, caption'")
        yield place, match["name"], match["text"]


CORPUS = Corpus(
    "Flickr30k-CN",
    add_options,
    read,
    expected={("test", "zh"): (5000, 1000)},
    notes=("Some copies of the captions have part-of-speech tags or are segmented: numbers on those are too low.",),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run(CORPUS, __doc__, "flickr30k_cn.py", argv)


if __name__ == "__main__":
    sys.exit(main())
