#!/usr/bin/env python3
"""WIT of IGLUE: image-text retrieval on Wikipedia's images in eleven languages.

From the repository iglue (Bugliarello et al., 2022), folder `datasets/wit/annotations`: `test_LANG.jsonl`. The images
are those of WIT's test set (Srinivasan et al., 2021); save each as NAME.jpg (or .png, .jpeg, .gif), where NAME is the
field `wit_ix`, such as wit-test_11. Or give the tables of pixels that were published for a competition (lines of
`image_url`, tab, picture in base64) as --pixels: the pictures are then written below OUTPUT/images.

The machine-translated test set (`annotations_machine-translate/test_LANG_gmt.jsonl`) has the captions of each
language in English. It becomes the split test_gmt, in which a language names where its captions come from.

Two published captions are empty, one in Greek and one in Indonesian. They are left out and listed in the manifest,
which leaves 9,582 captions.
"""

import argparse
import base64
import binascii
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from corpora.captions import Caption
from corpora.command import Corpus, Options, run_corpus
from corpora.files import json_lines, numbered_lines, require
from corpora.images import picture_name, write_picture
from corpora.sources import Sources

from mclip_fairseq.storage.errors import UserError

TRANSLATED = "test_gmt"
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
    parser.add_argument(
        "--translated",
        type=Path,
        metavar="DIR",
        help="also write the captions that were translated to English, from annotations_machine-translate",
    )
    parser.add_argument(
        "--pixels", type=Path, nargs="+", default=[], metavar="FILE", help="tables of pictures, instead of --images"
    )


def read(options: Options, sources: Sources) -> Iterator[Caption]:
    """All captions, language by language.

    Raises:
        UserError: --pixels beside --images, or a file of another form.
    """
    if options.pixels and options.images is not None:
        raise UserError("--pixels and --images are both given; the pictures come from one of them")
    files = [(options.annotations / f"test_{lang}.jsonl", "test", lang) for lang in options.languages]
    if options.translated is not None:
        others = [lang for lang in options.languages if lang != "en"]
        files += [(options.translated / f"test_{lang}_gmt.jsonl", TRANSLATED, lang) for lang in others]
    names = write_pictures(options, files, sources) if options.pixels else {}
    for path, split, lang in files:
        yield from read_file(sources.file(path), split, lang, names)


def write_pictures(options: Options, files: Sequence[tuple[Path, str, str]], sources: Sources) -> dict[str, str]:
    """Write the pictures that annotations name; returns `wit_ix` -> name of its file.

    Raises:
        UserError: a row of a table has another form, or a picture is missing.
    """
    wanted: dict[str, tuple[str, str]] = {}  # address -> wit_ix, and where it is named
    for path, _, _ in files:
        for place, record in json_lines(path):
            wanted.setdefault(require(record, "image_url", str, place), (name_of(record, place), place))
    names: dict[str, str] = {}
    for path in options.pixels:
        for place, line in numbered_lines(sources.file(path)):
            address, tab, picture = line.rstrip("\r\n").partition("\t")
            if not tab:
                raise UserError(f"{place}: is not an address, a tab and a picture; give the tables as published")
            if address in wanted:
                name = wanted[address][0]
                names[name] = write_base64(picture, options.output / "images", name, place)
    for name, place in wanted.values():
        if name not in names:
            raise UserError(f"{place}: the picture of {name} is in none of --pixels; give all tables of the test set")
    return names


def write_base64(picture: str, folder: Path, name: str, place: str) -> str:
    """Write a picture under a name, to which the ending of its format is added; returns both.

    Raises:
        UserError: it is not base64, or in no known format.
    """
    try:
        content = base64.b64decode(picture, validate=True)
    except binascii.Error as error:
        raise UserError(f"{place}: its picture is not base64 ({error}); download the table again") from error
    file = name + Path(picture_name(content, place)).suffix
    write_picture(folder / file, content, place)
    return file


def name_of(record: dict[str, Any], place: str) -> str:
    """The name of an image, without its ending."""
    return Path(require(record, "wit_ix", str, place)).name


def read_file(path: Path, split: str, lang: str, names: Mapping[str, str]) -> Iterator[Caption]:
    """The captions of a file in IGLUE's format.

    Args:
        path: the file.
        split: of its captions.
        lang: of its captions.
        names: of the images -> their files, where they are known.
    """
    for place, record in json_lines(path):
        if require(record, "language", str, place) != lang:
            raise UserError(f"{place}: is in {record['language']!r}, but the file is named for {lang}; rename it")
        name = name_of(record, place)
        text = require(record, "caption_reference_description", str, place)
        paths = (names[name],) if name in names else tuple(name + ending for ending in ENDINGS)
        yield Caption(split, lang, name, text, place, paths)


CORPUS = Corpus(
    "WIT (IGLUE)",
    add_options,
    read,
    notes=(
        "An image may have several captions in a language; IGLUE reports recall@1 over the images of a language.",
        "Captions that the published files have empty are left out (see published_empty), as in MTEB.",
        "Captions of test_gmt are English, translated from the language that they are filed under, entities included.",
    ),
    known_empty=KNOWN_EMPTY,
    skippable=frozenset(),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_corpus(CORPUS, __doc__, "wit.py", argv)


if __name__ == "__main__":
    sys.exit(main())
