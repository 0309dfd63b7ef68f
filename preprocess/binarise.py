#!/usr/bin/env python3
"""Run `fairseq-preprocess` with one dictionary for many language pairs, or many caption languages, in one process.

Reads pairs from `SPLIT.SRC-TGT.SRC` and `SPLIT.SRC-TGT.TGT` in --pieces, or from `SPLIT.SRC` and `SPLIT.TGT` if all
pairs share their files, and captions from `SPLIT.LANG`. Missing splits are skipped.
"""

import argparse
import logging
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from corpora.files import numbered_lines
from corpora.output import make_folder
from tqdm import tqdm

from mclip_fairseq.cli.main import Parser, run_main
from mclip_fairseq.storage.errors import UserError

SPLITS = ("train", "valid", "test")


def pair_options(pieces: Path, splits: Sequence[str], source: str, target: str) -> list[str]:
    """Languages and prefixes of one pair.

    Raises:
        UserError: a file is missing, or the two sides differ in their number of lines.
    """
    options = ["--source-lang", source, "--target-lang", target, "--joined-dictionary"]
    for split in splits:
        for prefix in (pieces / f"{split}.{source}-{target}", pieces / split):
            files = [Path(f"{prefix}.{lang}") for lang in (source, target)]
            exist = [file.is_file() for file in files]
            if any(exist) and not all(exist):
                raise UserError(f"{files[exist.index(False)]}: not found beside {files[exist.index(True)].name}")
            if all(exist):
                check_lines(*files)
                options += [f"--{split}pref", str(prefix)]
                break
    if len(options) == 5:
        raise UserError(
            f"{pieces}: has no {source}-{target} in any of the splits {', '.join(splits)}; run encode.py on them"
        )
    return options


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
        UserError: a line is not UTF-8; fairseq would stop there with the output half written.
    """
    return sum(1 for _ in numbered_lines(file))


def caption_options(pieces: Path, splits: Sequence[str], lang: str) -> list[str]:
    """Prefixes of the captions of one language.

    Raises:
        UserError: there are none, or one is not UTF-8.
    """
    options = ["--only-source", "--source-lang", lang]
    for split in splits:
        if (pieces / f"{split}.{lang}").is_file():
            count_lines(pieces / f"{split}.{lang}")
            options += [f"--{split}pref", str(pieces / split)]
    if len(options) == 3:
        raise UserError(
            f"{pieces}: has none of {', '.join(f'{split}.{lang}' for split in splits)}; run encode.py on them"
        )
    return options


@contextmanager
def log_of_one_run() -> Iterator[None]:
    """Keep fairseq-preprocess quiet, and close its log file, which it leaves open."""
    logger = logging.getLogger("fairseq_cli.preprocess")
    logger.propagate = False
    try:
        yield
    finally:
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
            handler.close()
        logger.propagate = True


def binarise(jobs: dict[str, list[str]], dictionary: Path, output: Path, workers: int) -> None:
    """Run fairseq-preprocess for every job; files are moved into place when all jobs are done."""
    from fairseq import options
    from fairseq_cli import preprocess

    with (
        tempfile.TemporaryDirectory(dir=output, prefix=".binarise-") as scratch,
        tqdm(jobs.items(), unit="job") as progress,
    ):
        common = ["--srcdict", str(dictionary), "--destdir", scratch, "--workers", str(workers)]
        for name, job in progress:
            progress.set_description(name)
            with log_of_one_run():
                preprocess.main(options.get_preprocessing_parser().parse_args([*job, *common]))
        for file in Path(scratch).iterdir():
            file.replace(output / file.name)


def check_dictionary(path: Path) -> None:
    """Check that fairseq can read the dictionary.

    Raises:
        UserError: the file is missing, is not a dictionary, or is empty.
    """
    from mclip_fairseq.data.tokens import load_dictionary

    if not path.is_file():
        raise UserError(f"{path}: not found; give the text encoder's dict.txt")
    dictionary = load_dictionary(path)
    # load_dictionary adds <mask>.
    if len(dictionary) <= dictionary.nspecial + 1:
        raise UserError(f"{path}: has no entries; give the text encoder's dict.txt")


def tokenize(options: argparse.Namespace) -> str:
    """Make captions into ids of a Hugging Face tokenizer; returns what to tell the user.

    Raises:
        UserError: an option or a file cannot be used.
    """
    from corpora.tokenized import binarise_captions

    if not options.captions:
        raise UserError("--tokenizer makes ids of captions; name their languages with --captions")
    files = {}
    for lang in options.captions:
        caption_options(options.pieces, options.splits, lang)  # all files are there, and UTF-8
        for split in options.splits:
            if (options.pieces / f"{split}.{lang}").is_file():
                files[f"{split}.{lang}-None.{lang}"] = options.pieces / f"{split}.{lang}"
    make_folder(options.output)
    captions = binarise_captions(options.tokenizer, files, options.output)
    return f"{options.output}: {captions} captions in {', '.join(options.captions)}"


def make(options: argparse.Namespace) -> str:
    """Check everything, then run all jobs; returns a summary for the user.

    Raises:
        UserError: an option or a file cannot be used.
    """
    if wrong := [pair for pair in options.pairs or [] if pair.count("-") != 1 or not all(pair.split("-"))]:
        raise UserError(f"--pairs {wrong[0]}: write a pair as SRC-TGT, such as en-de")
    if options.workers < 1:
        raise UserError(f"--workers {options.workers}: give at least 1")
    if options.tokenizer:
        return tokenize(options)
    check_dictionary(options.dictionary)
    jobs = {pair: pair_options(options.pieces, options.splits, *pair.split("-")) for pair in options.pairs or []}
    jobs |= {lang: caption_options(options.pieces, options.splits, lang) for lang in options.captions or []}
    make_folder(options.output)
    binarise(jobs, options.dictionary, options.output, options.workers)
    return f"{options.output}: {', '.join(jobs)}"


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
    parser.add_argument("--workers", type=int, default=1, help="processes per file (default: 1)")
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=SPLITS, help="splits to write (default: all)")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--pairs", nargs="+", metavar="SRC-TGT", help="language pairs to write")
    what.add_argument("--captions", nargs="+", metavar="LANG", help="caption languages to write")
    options = parser.parse_args(argv)
    return run_main("binarise.py", lambda: print(make(options)))


if __name__ == "__main__":
    sys.exit(main())
