#!/usr/bin/env python3
"""CCRK's data: images with one caption in each of several languages, and its retrieval files.

Pre-training data are files with one JSON object per line: `caption`, an object of language -> text, and `image_path`,
or `image` with the picture in base64, which is then written below OUTPUT/images. A directory stands for its files.
Every record must have all languages, so that line N of every file is about the same image: one that has not is an
error. Retrieval files are JSON lists of objects with `image` and `caption`, a text or a list of texts; name each with
its split and language, as in --retrieval train.de=de_train.json test.de=de_test.json. Tables have an image, a tab and
a caption a line; mclip-translate writes them. All languages of a split must have the same images, in any order, as in
--tables train.en=en.tsv train.de=translated/de.tsv train.fr=translated/fr.tsv.

  preprocess/captions.sh --xlmr xlmr.large --output cc2m --images cc3m ccrk --train cc3m_10lan/ --valid valid.data
"""

import argparse
import base64
import binascii
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from corpora.captions import Caption
from corpora.command import Corpus, Options, run_corpus
from corpora.files import json_lines, read_large_json, require, table_rows, unique
from corpora.images import picture_name, write_picture
from corpora.sources import Sources

from mclip_fairseq.storage.errors import UserError

SPLITS = ("train", "valid")
# What the released code turns into spaces; of other scripts' punctuation it knows none.
PUNCTUATION = re.compile(r"""[,.'!?"()*#:;~\-/]""")
WHITE_SPACE = re.compile(r"\s{2,}")
MARKERS = "_SUCCESS"
CLEANING = ("none", "released")


def clean_caption(text: str, max_words: int) -> str:
    """A caption as the released code reads it.

    Lower case, ASCII punctuation and hyphens as spaces, `<person>` as person, runs of white space as one space (a
    single tab or ideographic space stays), and at most so many words between spaces. Nothing may be left.

    Args:
        text: the caption.
        max_words: 40 in pre-training, 30 for Multi30K and COCO, 80 for xFlickr&CO and WIT.
    """
    text = PUNCTUATION.sub(" ", text.lower()).replace("<person>", "person")
    text = WHITE_SPACE.sub(" ", text).rstrip("\n").strip(" ")
    return " ".join(text.split(" ")[:max_words])


def add_options(parser: argparse.ArgumentParser) -> None:
    """Name the source files."""
    for split in SPLITS:
        parser.add_argument(
            f"--{split}", type=Path, nargs="+", default=[], metavar="PATH", help=f"files or directories of {split}"
        )
    parser.add_argument("--languages", nargs="+", metavar="LANG", help="which to take (all of the first record)")
    parser.add_argument("--image-key", default="image", metavar="KEY", help="key of a picture in base64 (image)")
    parser.add_argument(
        "--strip", default="", metavar="PREFIX", help="take this from the front of every image_path, such as images/"
    )
    parser.add_argument(
        "--retrieval", nargs="+", default=[], metavar="SPLIT.LANG=FILE", help="lists of images with captions"
    )
    parser.add_argument(
        "--tables", nargs="+", default=[], metavar="SPLIT.LANG=FILE", help="tables of image, tab, caption"
    )
    parser.add_argument(
        "--clean", choices=CLEANING, default="none", help="captions as they are, or as the released code reads them"
    )
    parser.add_argument("--max-words", type=int, default=40, metavar="N", help="with --clean released (40)")


def read(options: Options, sources: Sources) -> Iterator[Caption]:
    """All captions, image by image, the languages in one order.

    Raises:
        UserError: a record lacks a language, a caption or its image, or an option cannot be used.
    """
    if options.max_words < 1:
        raise UserError(f"--max-words {options.max_words}: give at least 1")
    languages = options.languages
    for split in SPLITS:
        for path in source_files(getattr(options, split)):
            for place, record in json_lines(sources.file(path)):
                captions = require(record, "caption", dict, place)
                languages = languages or sorted(captions)
                yield from captions_of_record(options, split, languages, record, place)
    yield from read_tables(options, sources)
    for named in options.retrieval:
        yield from read_retrieval(options, named, sources)


def source_files(paths: Sequence[Path]) -> Iterator[Path]:
    """Files as they are, and those of directories in the order of their names, without markers of finished jobs.

    Raises:
        UserError: a directory without a file.
    """
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        files = sorted(file for file in path.iterdir() if file.is_file() and MARKERS not in file.name)
        if not files:
            raise UserError(f"{path}: has no files; give the directory with the part files")
        yield from files


def captions_of_record(
    options: Options, split: str, languages: Sequence[str], record: dict[str, Any], place: str
) -> Iterator[Caption]:
    """The captions of one image.

    Raises:
        UserError: a language is missing, a caption is empty, or there is no image.
    """
    image = image_of_record(options, record, place)
    for language in languages:
        text = record["caption"].get(language)
        if not isinstance(text, str):
            raise UserError(
                f"{place}: has no caption in {language}; add it, leave the record out, or name fewer --languages"
            )
        yield Caption(split, language, image, cleaned(options, text), place, (image,))


def image_of_record(options: Options, record: dict[str, Any], place: str) -> str:
    """Id of an image: its path, or the name under which the picture in the record is written.

    Raises:
        UserError: there is none, or it is not base64 of a known format.
    """
    if "image_path" in record:
        return require(record, "image_path", str, place).removeprefix(options.strip)
    if options.images is not None:
        raise UserError(f"{place}: holds its picture in base64; leave out --images")
    try:
        content = base64.b64decode(require(record, options.image_key, str, place), validate=True)
    except binascii.Error as error:
        raise UserError(
            f"{place}: {options.image_key} is not base64 ({error}); name the key with --image-key"
        ) from error
    # Captions of the same picture in two records are positives of each other.
    name = picture_name(content, place)
    write_picture(options.output / "images" / name, content, place)
    return name


def split_language_file(option: str, named: str) -> tuple[str, str, Path]:
    """The three parts of `SPLIT.LANG=FILE`.

    Raises:
        UserError: it is written differently.
    """
    group, _, path = named.partition("=")
    split, _, language = group.rpartition(".")
    if not (split and language and path):
        raise UserError(f"{option} {named}: write it as SPLIT.LANG=FILE, such as train.de=de_train.json")
    return split, language, Path(path)


def read_tables(options: Options, sources: Sources) -> Iterator[Caption]:
    """The captions of the tables, image by image in the order of a split's first table.

    Raises:
        UserError: a table has an image twice, or lacks one that another language of its split has.
    """
    tables: dict[str, dict[str, dict[str, tuple[str, str]]]] = {}
    for named in options.tables:
        split, language, path = split_language_file("--tables", named)
        lines = unique(table_rows(sources.file(path), 2), lambda row: row[0], "image")
        tables.setdefault(split, {})[language] = {row[0]: (place, row[1]) for place, row in lines}
    for split, languages in tables.items():
        images = list(next(iter(languages.values())))
        for language, rows in languages.items():
            if differing := sorted(rows.keys() ^ set(images)):
                raise UserError(
                    f"--tables: {len(differing)} images of {split}, such as {differing[0]}, have no caption in some "
                    f"language (seen at {language}); leave them out of all tables"
                )
        for image in images:
            for language, rows in languages.items():
                place, text = rows[image]
                yield Caption(split, language, image, cleaned(options, text), place, (image,))


def read_retrieval(options: Options, named: str, sources: Sources) -> Iterator[Caption]:
    """The captions of a retrieval file, in its order.

    Raises:
        UserError: the option or the file has another form.
    """
    split, language, path = split_language_file("--retrieval", named)
    records = read_large_json(sources.file(path))
    if not isinstance(records, list):
        raise UserError(f"{path}: is not a list of objects with `image` and `caption`")
    for number, record in enumerate(records, 1):
        place = f"{path}, item {number}"
        image = require(record, "image", str, place).removeprefix(options.strip)
        texts = record.get("caption")
        for text in texts if isinstance(texts, list) else [texts]:
            if not isinstance(text, str):
                raise UserError(f"{place}: `caption` is neither a text nor a list of texts")
            yield Caption(split, language, image, cleaned(options, text), place, (image,))


def cleaned(options: Options, text: str) -> str:
    """A caption as `--clean` asks for it."""
    return clean_caption(text, options.max_words) if options.clean == "released" else text


CORPUS = Corpus(
    "CCRK",
    add_options,
    read,
    notes=("Line N of every language is about the same image.",),
    # Without a line in one language, the others would be about other images.
    skippable=frozenset(),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_corpus(CORPUS, __doc__, "ccrk.py", argv)


if __name__ == "__main__":
    sys.exit(main())
