#!/usr/bin/env python3
"""Crossmodal-3600 (XM3600): captions in 36 languages for 3,600 images.

From the web site of "Crossmodal-3600: A Massively Multilingual Multimodal Evaluation Dataset" (Thapliyal et al., 2022):
`captions.jsonl` (in `captions.zip`), and the images as `KEY.jpg` (`images.tgz`).
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from corpora.captions import Caption
from corpora.command import Corpus, Options, run_corpus
from corpora.files import json_lines, require, unique
from corpora.sources import Sources

KEY = "image/key"
LANGUAGES = (
    *("ar", "bn", "cs", "da", "de", "el", "en", "es", "fa", "fi", "fil", "fr", "he", "hi", "hr", "hu", "id", "it"),
    *("ja", "ko", "mi", "nl", "no", "pl", "pt", "quz", "ro", "ru", "sv", "sw", "te", "th", "tr", "uk", "vi", "zh"),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Name the source files."""
    parser.add_argument("--captions", type=Path, required=True, metavar="FILE", help="captions.jsonl")
    parser.add_argument(
        "--languages", nargs="+", choices=LANGUAGES, default=LANGUAGES, help="languages to write (default: all)"
    )
    parser.add_argument("--first-only", action="store_true", help="write one caption per image, as in CLIP_benchmark")


def read(options: Options, sources: Sources) -> Iterator[Caption]:
    """All captions, image by image."""
    records = json_lines(sources.file(options.captions))
    for place, record in unique(records, lambda record: require(record, KEY, str, str(options.captions)), "image"):
        key = require(record, KEY, str, place)
        for lang in options.languages:
            texts = require(require(record, lang, dict, place), "caption", list, f"{place}, {lang}")
            for text in texts[:1] if options.first_only else texts:
                yield Caption("test", lang, f"{key}.jpg", str(text), f"{place}, {lang}", (f"{key}.jpg",))


CORPUS = Corpus(
    lambda options: "Crossmodal-3600 (first captions)" if options.first_only else "Crossmodal-3600",
    add_options,
    read,
    expected=lambda options: {
        ("test", lang): (3600 if options.first_only else None, 3600) for lang in options.languages
    },
    notes=(
        "Babel-ImageNet, SigLIP 2 and Meta CLIP 2 use all captions; CLIP_benchmark, OpenCLIP and NLLB-CLIP use the "
        "first.",
        "Most models are near zero in quz and mi: say over which languages a mean is.",
    ),
    skippable=frozenset(),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_corpus(CORPUS, __doc__, "xm3600.py", argv)


if __name__ == "__main__":
    sys.exit(main())
