#!/usr/bin/env python3
"""Write what `fairseq-preprocess` writes, with one dictionary for many language pairs or caption languages.

Reads pairs from `SPLIT.SRC-TGT.SRC` and `SPLIT.SRC-TGT.TGT` in --pieces, or from `SPLIT.SRC` and `SPLIT.TGT` if all
pairs share their files, and captions from `SPLIT.LANG`. Missing splits are skipped.
The files are those of `fairseq-preprocess`, byte for byte. Uses all cores.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from corpora.files import raw_chunks
from corpora.output import make_folder
from corpora.pieces import PieceDictionary, ids_by
from corpora.pool import in_order
from tqdm import tqdm

from mclip_fairseq.cli.main import Parser, run_main
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.indexed import write_indexed
from mclip_fairseq.storage.machine import cores

CHUNK = 4096
SPLITS = ("train", "valid", "test")


def pair_files(pieces: Path, splits: Sequence[str], source: str, target: str) -> dict[str, Path]:
    """Both sides of one pair: name of the output -> pieces.

    Raises:
        UserError: a file is missing, or the two sides differ in their number of lines.
    """
    named: dict[str, Path] = {}
    for split in splits:
        for prefix in (pieces / f"{split}.{source}-{target}", pieces / split):
            files = {f"{split}.{source}-{target}.{lang}": Path(f"{prefix}.{lang}") for lang in (source, target)}
            missing = [file for file in files.values() if not file.is_file()]
            if len(missing) == 1:
                present = next(file for file in files.values() if file not in missing)
                raise UserError(f"{missing[0]}: not found beside {present.name}")
            if not missing:
                check_lines(*files.values())
                named |= files
                break
    if not named:
        raise UserError(
            f"{pieces}: has no {source}-{target} in any of the splits {', '.join(splits)}; run encode.py on them"
        )
    return named


def check_lines(source: Path, target: Path) -> None:
    """Check that two files have as many lines.

    Raises:
        UserError: naming both numbers, or the line that is not UTF-8.
    """
    lines = [count_lines(file) for file in (source, target)]
    if lines[0] != lines[1]:
        raise UserError(
            f"{target}: has {lines[1]} lines, but {source} has {lines[0]}; look for a line that is missing or broken "
            "in two"
        )


def count_lines(file: Path) -> int:
    """Number of lines of a UTF-8 file; the last need not end in a line feed.

    Raises:
        UserError: a line is not UTF-8.
    """
    return sum(len(chunk.texts()) for chunk in raw_chunks(file, CHUNK))


def caption_files(pieces: Path, splits: Sequence[str], lang: str) -> dict[str, Path]:
    """Captions of one language: name of the output -> pieces.

    Raises:
        UserError: there are none, or one is not UTF-8.
    """
    files = {f"{split}.{lang}-None.{lang}": pieces / f"{split}.{lang}" for split in splits}
    files = {name: file for name, file in files.items() if file.is_file()}
    if not files:
        raise UserError(
            f"{pieces}: has none of {', '.join(f'{split}.{lang}' for split in splits)}; run encode.py on them"
        )
    for file in files.values():
        count_lines(file)
    return files


def binarise(files: Mapping[str, Path], dictionary: PieceDictionary, output: Path, workers: int) -> None:
    """Write the ids of every file, and its language's copy of the dictionary; they get their names when all are done.

    Args:
        files: name of the output, which ends in the language -> pieces.
        dictionary: of the pieces.
        output: directory.
        workers: processes.
    """
    with (
        tempfile.TemporaryDirectory(dir=output, prefix=".binarise-") as scratch,
        tqdm(files.items(), unit="file") as progress,
    ):
        for name, file in progress:
            progress.set_description(name)
            ids = in_order(ids_by(dictionary), raw_chunks(file, CHUNK), workers)
            write_indexed(Path(scratch) / name, ids, dictionary.dtype)
            language = name.rpartition(".")[2]
            (Path(scratch) / f"dict.{language}.txt").write_text(dictionary.text, encoding="utf-8")
        for file in Path(scratch).iterdir():
            file.replace(output / file.name)


def tokenize(options: argparse.Namespace) -> str:
    """Make captions into ids of a Hugging Face tokenizer; returns what to tell the user.

    Raises:
        UserError: an option or a file cannot be used.
    """
    from corpora.tokenized import binarise_captions

    if not options.captions:
        raise UserError("--tokenizer makes ids of captions; name their languages with --captions")
    files: dict[str, Path] = {}
    for lang in options.captions:
        files |= caption_files(options.pieces, options.splits, lang)
    make_folder(options.output)
    captions = binarise_captions(options.tokenizer, files, options.output)
    return f"{options.output}: {captions} captions in {', '.join(options.captions)}"


def make(options: argparse.Namespace) -> str:
    """Check everything, then write all files; returns a summary for the user.

    Raises:
        UserError: an option or a file cannot be used.
    """
    if wrong := [pair for pair in options.pairs or [] if pair.count("-") != 1 or not all(pair.split("-"))]:
        raise UserError(f"--pairs {wrong[0]}: write a pair as SRC-TGT, such as en-de")
    if options.workers < 1:
        raise UserError(f"--workers {options.workers}: give at least 1")
    if options.tokenizer:
        return tokenize(options)
    dictionary = PieceDictionary.read(options.dictionary)
    files: dict[str, Path] = {}
    for pair in options.pairs or []:
        files |= pair_files(options.pieces, options.splits, *pair.split("-"))
    for lang in options.captions or []:
        files |= caption_files(options.pieces, options.splits, lang)
    make_folder(options.output)
    binarise(files, dictionary, options.output, options.workers)
    return f"{options.output}: {', '.join(options.pairs or options.captions)}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pieces", type=Path, required=True, help="directory that encode.py wrote")
    ids = parser.add_mutually_exclusive_group(required=True)
    ids.add_argument("--dictionary", type=Path, help="the text encoder's dict.txt")
    ids.add_argument(
        "--tokenizer",
        help="Hugging Face tokenizer (Hub name, directory, or mBERT's vocab.txt): --pieces then has plain text, and "
        "the ids are the tokenizer's own",
    )
    parser.add_argument("--output", type=Path, required=True, help="directory to write")
    parser.add_argument("--workers", type=int, default=cores(), help=f"processes (default: all cores, {cores()})")
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=SPLITS, help="splits to write (default: all)")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--pairs", nargs="+", metavar="SRC-TGT", help="language pairs to write")
    what.add_argument("--captions", nargs="+", metavar="LANG", help="caption languages to write")
    options = parser.parse_args(argv)
    return run_main("binarise.py", lambda: print(make(options)))


if __name__ == "__main__":
    sys.exit(main())
