#!/usr/bin/env python3
"""WIT of IGLUE: image-text retrieval on Wikipedia's images in eleven languages.

From the repository iglue (Bugliarello et al., 2022), folder `datasets/wit/annotations`: `test_LANG.jsonl`. The images
are those of WIT's test set (Srinivasan et al., 2021); save each as NAME.jpg (or .png, .jpeg, .gif), where NAME is the
field `wit_ix`, such as wit-test_11.

Two published captions are empty, one in Greek and one in Indonesian. They are left out and listed in the manifest,
which leaves 9,582 captions.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from corpora.captions import Caption
from corpora.command import Corpus, Options, run_corpus
from corpora.files import json_lines, require
from corpora.sources import Sources

from mclip_fairseq.storage.errors import UserError

LANGUAGES = ("en", "ar", "bg", "da", "el", "et", "id", "ja", "ko", "tr", "vi")
ENDINGS = (".jpg", ".png", ".jpeg", ".gif")
# Lines 430 of test_el.jsonl and 797 of test_id.jsonl hold a no-break space only.
KNOWN_EMPTY = frozenset({("el", "wit-test_6139"), ("id", "wit-test_7639")})


def add_options(parser: argparse.ArgumentParser) -> None:
    """Name the source files."""
    parser.add_argument("--annotations", type=Path, required=True, metavar="DIR", help="datasets/wit/annotations")
    parser.add_argument(
        "--languages", nargs="+", choices=LANGUAGES, default=LANGUAGES, help="languages to write (default: all)"
    )


def read(options: Options, sources: Sources) -> Iterator[Caption]:
    """All captions, language by language."""
    for lang in options.languages:
        for place, record in json_lines(sources.file(options.annotations / f"test_{lang}.jsonl")):
            if require(record, "language", str, place) != lang:
                raise UserError(f"{place}: is in {record['language']!r}, but the file is named for {lang}; rename it")
            name = Path(require(record, "wit_ix", str, place)).name
            text = require(record, "caption_reference_description", str, place)
            yield Caption("test", lang, name, text, place, tuple(name + ending for ending in ENDINGS))


CORPUS = Corpus(
    "WIT (IGLUE)",
    add_options,
    read,
    notes=(
        "An image may have several captions in a language; IGLUE reports recall@1 over the images of a language.",
        "Captions that the published files have empty are left out (see published_empty), as in MTEB.",
    ),
    known_empty=KNOWN_EMPTY,
    skippable=frozenset(),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_corpus(CORPUS, __doc__, "wit.py", argv)


if __name__ == "__main__":
    sys.exit(main())
