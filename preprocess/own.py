#!/usr/bin/env python3
"""Your own images and captions, in any usual format, as files for training, evaluation and search.

SOURCE is one of

- a table with a header: .csv (commas, semicolons or tabs, with quotes), .tsv (tabs, without quotes), .parquet, or
  .jsonl with one object per line; also compressed (.gz, .bz2, .xz), except Parquet;
- a directory that Hugging Face's `datasets` saved, one with Parquet files, or one with images beside metadata.csv,
  metadata.jsonl or metadata.parquet;
- webdataset tars, or a directory of them: KEY.jpg with KEY.txt, KEY.LANG.txt or fields of KEY.json;
- a folder of images with caption files beside them: NAME.txt or NAME.LANG.txt, one caption per line.

Columns are found by their names (image, file_name, ...; caption, text, ...; caption_de or de for a language of its own;
language; split), or named by options. A caption may be a list of captions, or an object of language and caption. The
language of a caption is that of its column, else of the record, else of the file (de=FILE, or captions.de.csv), else
--language. Splits come from --train, --valid and --test, from directories and file names, or from a column. Where the
data name no split but train, --ratio takes some images for validation and test.

An image is named by its path below --images (its ending may be missing); an image inside a record is written to
OUTPUT/images. With --leave-in-tars it stays in its tar, where training finds it (--image-root 'TARS/*.tar'). What was
chosen is printed, and is in OUTPUT/manifest.json.

For example:
  own.py captions.csv --images photos --output mine/text
  own.py en=english.tsv de=german.tsv --images photos --ratio valid=0.05 test=0.05 --seed 2 --output mine/text
  own.py --train train.jsonl --valid dev.jsonl --test test.jsonl --images photos --output mine/text
  own.py photos --language en --output mine/text
"""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from corpora.captions import TRAIN, Caption, CaptionWriter, Skipping
from corpora.columns import Asked, Chosen, Columns
from corpora.dividing import DEFAULT, divide, parse_shares
from corpora.output import Output
from corpora.parts import CODE, FORMATS, Part, check_tars, language_code, parts_of, register, split_name
from corpora.pictures import Pictures
from corpora.records import Record, read_records
from corpora.sources import Sources, check_folder
from corpora.text import clean_text, one_line

from mclip_fairseq.cli.main import Parser, run_main
from mclip_fairseq.storage.errors import UserError

Options = argparse.Namespace
# Spaces are usual in names of photos; tabs, line ends and `..` are not.
WORD = r"[^\s\x00-\x1f\x7f-\x9f\ud800-\udfff]+"
NAME = re.compile(rf"(?![/ ])(?!(.*/)?\.\.(/|$)){WORD}( +{WORD})*")


def own_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = Parser(
        prog="own.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "source", nargs="*", metavar="[LANG=]SOURCE", help="data whose splits are in them, or are made by --ratio"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="directory to write")
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="folder of the images (default: the folder of the first source)"
    )
    leave = "do not write the images of tars to OUTPUT/images; training reads them from the tars"
    parser.add_argument("--leave-in-tars", action="store_true", help=leave)
    parser.add_argument("--name", default="", help="name in the manifest (default: the first source's)")
    parser.add_argument(
        "--format", choices=sorted(set(FORMATS.values())), default="", help="format of all files (default: by name)"
    )
    splits = parser.add_argument_group("splits")
    for split in ("train", "valid", "test"):
        splits.add_argument(
            f"--{split}", nargs="+", default=[], metavar="[LANG=]SOURCE", help=f"data that belong to {split}"
        )
    splits.add_argument(
        "--ratio",
        nargs="+",
        metavar="SPLIT=SHARE",
        help="share of the images of train that go to another split (default, if the data name no other split: "
        f"{' '.join(f'{split}={share}' for split, share in DEFAULT.items())}); valid=0 for none",
    )
    splits.add_argument("--seed", type=int, default=1, metavar="N", help="which images --ratio chooses (default 1)")
    columns = parser.add_argument_group("columns (default: by their names)")
    columns.add_argument("--columns", nargs="+", default=[], metavar="NAME", help="names, for a table without a header")
    columns.add_argument("--image-column", default="", metavar="NAME")
    columns.add_argument("--caption-column", nargs="+", default=[], metavar="[LANG=]NAME")
    columns.add_argument("--language-column", default="", metavar="NAME")
    columns.add_argument("--split-column", default="", metavar="NAME")
    captions = parser.add_argument_group("captions")
    captions.add_argument("--language", default="", metavar="LANG", help="of captions for which nothing else says it")
    captions.add_argument(
        "--clean", action="store_true", help="repair text from the web: encoding, entities, markup, control characters"
    )
    captions.add_argument(
        "--skip-budget",
        type=int,
        default=0,
        metavar="N",
        help="how many captions may be left out because they are empty or lack their image (default 0)",
    )
    return parser


def with_language(text: str) -> tuple[str, str]:
    """(language, rest) of `[LANG=]REST`; a name with a sign of equality is not taken apart if such a file exists."""
    language, sign, rest = text.partition("=")
    if not sign or CODE.fullmatch(language.lower()) is None or Path(text).exists():
        return "", text
    return language_code(language, text), rest


def find_parts(options: Options) -> list[Part]:
    """The files that the options name, in their order.

    Raises:
        UserError: none is named, or one cannot be used.
    """
    named = [("", source) for source in options.source]
    named += [(split, source) for split in ("train", "valid", "test") for source in getattr(options, split)]
    if not named:
        raise UserError("no data given; name a file or directory, or give --train, --valid and --test")
    parts = []
    for split, source in named:
        language, path = with_language(source)
        parts += parts_of(Path(path), Part(Path(path), options.format, split, language))
    check_tars(parts)
    return parts


def image_root(options: Options, parts: Sequence[Part]) -> Path:
    """The folder of images: --images, or that of the first source."""
    if options.images is not None:
        return check_folder(options.images)
    first = Path(with_language([*options.source, *options.train, *options.valid, *options.test][0])[1])
    return first if first.is_dir() else parts[0].path.parent


class OwnData:
    """Captions of all parts.

    Args:
        parts: the files.
        options: of the command line.
        pictures: where images are.
    """

    def __init__(self, parts: Sequence[Part], options: Options, pictures: Pictures) -> None:
        self.parts = parts
        self.options = options
        self.pictures = pictures
        captions = {name: language for language, name in map(with_language, options.caption_column)}
        self.asked = Asked(options.image_column, captions, options.language_column, options.split_column)
        self.default_language = language_code(options.language, "--language") if options.language else ""
        # What was chosen, for the summary; a dict is an ordered set.
        self.described: dict[str, None] = {}

    def read(self, write: bool) -> Iterator[Caption]:
        """All captions, in the order of the sources; what belongs to no split has the split train.

        Args:
            write: whether to write pictures that records hold.
        """
        for part in self.parts:
            columns = Columns(self.asked)

            def select(names: Sequence[str], columns: Columns = columns, place: str = str(part.path)) -> list[str]:
                return columns.choose(names, place).all

            for record in read_records(part, self.options.columns, select):
                if record.unused:
                    yield Caption("", "", "", "", record.place, (), unused=record.unused)
                    continue
                chosen = columns.choose(list(record.values), record.place)
                self.described[chosen.describe()] = None
                yield from self._captions(part, record, chosen, write)

    def _captions(self, part: Part, record: Record, chosen: Chosen, write: bool) -> Iterator[Caption]:
        """The captions of a record; a language without one is unused if another has one."""
        place = record.place
        image, paths = self.pictures.locate(record.values[chosen.image], part.below, place, write)
        split = part.split or self._text(record, chosen.split, place)
        if chosen.split and not split:
            raise UserError(f"{place}: has no split; fill the column {chosen.split}")
        spoken = self._text(record, chosen.language, place)
        fallback = (language_code(spoken, place) if spoken else part.language) or self.default_language
        found = [
            (language or fallback, text)
            for name, language in chosen.captions.items()
            for language, text in texts_of(record.values[name], language, place)
        ]
        filled = {language for language, text in found if one_line(text)}
        for language, text in found:
            if not one_line(text) and filled - {language}:
                yield Caption("", "", "", "", place, (), unused=f"no caption in {language or 'a column'}")
                continue
            if not language:
                raise UserError(
                    f"{place}: nothing says the language of the caption; give --language, LANG=SOURCE or "
                    "--language-column"
                )
            text = clean_text(text) if self.options.clean else text
            yield Caption(split_name(split or TRAIN), language, image, text, place, paths)

    @staticmethod
    def _text(record: Record, name: str, place: str) -> str:
        """A column's value, if there is such a column, as text."""
        value = record.values[name] if name else None
        if value is not None and not isinstance(value, str):
            raise UserError(f"{place}: {name} is {value!r}, not a text; name another column")
        return (value or "").strip()


def texts_of(value: Any, language: str, place: str) -> Iterator[tuple[str, str]]:
    """(language, caption) of a value: a caption, a list of captions, or an object of languages and captions.

    Raises:
        UserError: the value is none of these.
    """
    match value:
        case None:
            yield language, ""
        case str():
            yield language, value
        case list() if value:
            for item in value:
                yield from texts_of(item, language, place)
        case list():
            yield language, ""
        case dict() if not language:
            for code, text in value.items():
                yield from texts_of(text, language_code(code, place), place)
        case _:
            raise UserError(f"{place}: the caption is {str(value)[:40]!r}, not a text; name another column")


def splits_of(data: OwnData) -> dict[str, str]:
    """Image -> split, for all images that exist and have a caption.

    Raises:
        UserError: an image has captions in two splits, which would test what was trained on.
    """
    splits: dict[str, str] = {}
    for caption in data.read(write=False):
        if caption.unused or not one_line(caption.text):
            continue
        if data.pictures.path(caption.image, caption.paths) is None:
            continue
        before = splits.setdefault(caption.image, caption.split)
        if before != caption.split:
            raise UserError(
                f"{caption.place}: the image {caption.image} is in {caption.split}, but also in {before}; put all its "
                "captions into one split"
            )
    return splits


def write_own(options: Options) -> str:
    """Read and write everything; returns a summary for the user."""
    if options.skip_budget < 0:
        raise UserError(f"--skip-budget {options.skip_budget}: give 0 or more")
    parts, sources = find_parts(options), Sources()
    if options.leave_in_tars and any(part.format != "tar" for part in parts):
        raise UserError("--leave-in-tars is for webdataset tars only; leave it out")
    pictures = Pictures(image_root(options, parts), options.output / "images")
    data = OwnData(parts, options, pictures)
    shares = None if options.ratio is None else parse_shares(options.ratio)
    register(parts, sources)
    splits = splits_of(data)
    if shares is None:
        shares = {} if set(splits.values()) - {TRAIN} else DEFAULT
    moved = divide(splits, shares, options.seed)
    with Output(options.output, options.name or f"own data: {parts[0].path.name}") as output:
        writer = CaptionWriter(output, pictures, Skipping(options.skip_budget, None), NAME)
        writer.write(
            replace(caption, split=moved.get(caption.image, caption.split))
            for caption in data.read(write=not options.leave_in_tars)
        )
        facts: dict[str, Any] = {"script": "preprocess/own.py", "sources": sources.described(), **writer.facts()}
        facts |= {"columns": list(data.described), "divided": {"shares": shares, "seed": options.seed}}
        output.finish(facts, sources.paths)
    shown = [f"columns: {chosen}" for chosen in data.described]
    if moved:
        named = ", ".join(f"{share:.0%} to {split}" for split, share in shares.items() if share)
        shown.append(f"splits: {named}, chosen by --seed {options.seed}")
    return "\n".join([writer.summary(), *shown])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = own_parser().parse_args(argv)
    return run_main("own.py", lambda: print(write_own(options)))


if __name__ == "__main__":
    sys.exit(main())
