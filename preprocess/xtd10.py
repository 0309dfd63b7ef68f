#!/usr/bin/env python3
"""XTD10: one caption in each of eleven languages of 1,000 images of COCO 2014.

From the repository Cross-lingual-Test-Dataset-XTD10 of Adobe Research (Aggarwal and Kale, 2020), as it is: captions are
`XTD10/test_1kcaptions_{es,it,ko,pl,ru,tr,zh}.txt`, `MIC/test_1kcaptions_{en,de,fr}.txt` and
`STAIR/test_1kcaptions_jp.txt` (written as ja here); the images' names are `XTD10/test_image_names.txt`. Images: see
coco.py.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from corpora.captions import Caption
from corpora.coco import image_paths
from corpora.command import Corpus, Options, run
from corpora.files import held_lines, numbered_lines, same_length, unique
from corpora.sources import Sources

FOLDERS = {"MIC": ("en", "de", "fr"), "STAIR": ("ja",), "XTD10": ("es", "it", "ko", "pl", "ru", "tr", "zh")}
LANGUAGES = tuple(lang for langs in FOLDERS.values() for lang in langs)
SOURCE_NAMES = {"ja": "jp"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Name the source files."""
    parser.add_argument("--folder", type=Path, required=True, metavar="DIR", help="the repository")
    parser.add_argument("--languages", nargs="+", choices=LANGUAGES, default=LANGUAGES, help="which to take (all)")


def read(options: Options, sources: Sources) -> Iterator[Caption]:
    """All captions, language by language."""
    list_file = sources.file(options.folder / "XTD10" / "test_image_names.txt")
    names = ((place, line.strip()) for place, line in numbered_lines(list_file))
    images = [name for _, name in unique(names, str, "image")]
    for folder, langs in FOLDERS.items():
        for lang in langs:
            if lang not in options.languages:
                continue
            name = f"test_1kcaptions_{SOURCE_NAMES.get(lang, lang)}.txt"
            path = sources.file(options.folder / folder / name)
            lines = held_lines(path)
            same_length({list_file: images, path: lines})
            for image, (place, text) in zip(images, lines, strict=True):
                yield Caption("test", lang, image, text, place, image_paths(image))


CORPUS = Corpus(
    "XTD10",
    add_options,
    read,
    expected={("test", lang): (1000, 1000) for lang in LANGUAGES},
    notes=(
        "Leak: 800 of the 1,000 images are of COCO's train2014; a model that saw COCO has seen them.",
        "mCLIP chooses its checkpoints on this set.",
        "M-CLIP reports recall@10 of text to image, AltCLIP of image to text.",
    ),
    skippable=frozenset(),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run(CORPUS, __doc__, "xtd10.py", argv)


if __name__ == "__main__":
    sys.exit(main())
