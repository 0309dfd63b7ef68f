#!/usr/bin/env python3
"""XTD10: one caption in each of eleven languages for 1,000 images of COCO 2014.

From the repository Cross-lingual-Test-Dataset-XTD10 of Adobe Research (Aggarwal and Kale, 2020), unchanged. Captions
are `XTD10/test_1kcaptions_{en,es,it,ko,pl,ru,tr,zh}.txt`, `MIC/test_1kcaptions_{de,fr}.txt` and
`STAIR/test_1kcaptions_jp.txt` (written as ja); older snapshots have English in `MIC/`. Image names are in
`XTD10/test_image_names.txt`. Images: see coco.py.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from corpora.captions import Caption
from corpora.coco import image_paths
from corpora.command import Corpus, Options, run_corpus
from corpora.files import check_same_length, load_lines, numbered_lines, unique
from corpora.sources import Sources

# Language -> folders that may have its captions, the newest snapshot's first.
FOLDERS = {
    "en": ("XTD10", "MIC"),
    **dict.fromkeys(("de", "fr"), ("MIC",)),
    "ja": ("STAIR",),
    **dict.fromkeys(("es", "it", "ko", "pl", "ru", "tr", "zh"), ("XTD10",)),
}
LANGUAGES = tuple(FOLDERS)
SOURCE_NAMES = {"ja": "jp"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Name the source files."""
    parser.add_argument("--folder", type=Path, required=True, metavar="DIR", help="the repository")
    parser.add_argument(
        "--languages", nargs="+", choices=LANGUAGES, default=LANGUAGES, help="languages to write (default: all)"
    )


def read(options: Options, sources: Sources) -> Iterator[Caption]:
    """All captions, language by language."""
    list_file = sources.file(options.folder / "XTD10" / "test_image_names.txt")
    names = ((place, line.strip()) for place, line in numbered_lines(list_file))
    images = [name for _, name in unique(names, str, "image")]
    for lang in [lang for lang in LANGUAGES if lang in options.languages]:
        path = sources.file(captions_file(options.folder, lang))
        lines = load_lines(path)
        check_same_length({list_file: images, path: lines})
        for image, (place, text) in zip(images, lines, strict=True):
            yield Caption("test", lang, image, text, place, image_paths(image))


def captions_file(repository: Path, lang: str) -> Path:
    """The captions of a language: the first existing file, or the usual one."""
    name = f"test_1kcaptions_{SOURCE_NAMES.get(lang, lang)}.txt"
    paths = [repository / folder / name for folder in FOLDERS[lang]]
    return next((path for path in paths if path.is_file()), paths[0])


CORPUS = Corpus(
    "XTD10",
    add_options,
    read,
    expected={("test", lang): (1000, 1000) for lang in LANGUAGES},
    notes=(
        "Leak: 800 of the 1,000 images are in COCO's train2014; a model that was trained on COCO has seen them.",
        "mCLIP selects its checkpoints on this set.",
        "M-CLIP reports recall@10 of text to image, AltCLIP of image to text.",
    ),
    skippable=frozenset(),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_corpus(CORPUS, __doc__, "xtd10.py", argv)


if __name__ == "__main__":
    sys.exit(main())
