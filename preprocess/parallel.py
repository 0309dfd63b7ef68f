#!/usr/bin/env python3
"""Clean parallel text of one language pair: OPUS or Moses files, WMT's tsv and SGML, any number of them as one corpus.

mCLIP uses the WMT and OPUS corpora of en-cs, en-de, en-es, en-ja, en-ru and en-zh, from the OPUS web site (Tiedemann,
2012) and the pages of WMT's shared tasks, with newstest sets for valid and test.

Training text is cleaned (encoding, entities, markup, control characters, white space, Unicode NFC), filtered by length,
length ratio and script, and deduplicated across all inputs. Other splits are kept line by line as they are. Writes
SPLIT.SRC-TGT.SRC and SPLIT.SRC-TGT.TGT for encode.py and binarise.py, and SPLIT.SRC-TGT.json with the hashes of the
sources, counts, and examples of what was dropped and why. Uses all cores; memory does not grow with the corpus.
"""

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from corpora.command import Options
from corpora.duplicates import Duplicates
from corpora.files import decode, numbered_lines
from corpora.filters import DUPLICATE, EXAMPLES, REASONS, Chunk, FilteredChunk, Rules, filter_with, key_of
from corpora.output import Output
from corpora.parallel import READERS, chunks
from corpora.pool import in_order
from corpora.scripts import letters_in, scripts_of
from corpora.sources import Sources
from corpora.text import clean_text, fold_text, one_line
from tqdm import tqdm

from mclip_fairseq.cli.main import Parser, run_main
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.machine import cores

SCRIPT = "parallel.py"
TRAIN = "train"
# Option -> its type and meaning; the defaults are those of `Rules`.
RULES: dict[str, tuple[Callable[[str], float], str]] = {
    "min_words": (int, "fewest words of a side"),
    "max_words": (int, "most words of a side"),
    "max_word": (int, "most characters of a word"),
    "max_ratio": (float, "most words of the longer side per word of the shorter"),
    "min_script": (float, "least share of a side's letters in the script of its language"),
}
INPUTS = {
    "moses": "two aligned text files",
    "zip": "OPUS's archive of two aligned text files",
    "tsv": "a table with both sides in one line",
    "sgm": "two SGML files of WMT",
}


class CleaningReport:
    """What was read, written and dropped.

    Args:
        output: where pairs are written.
        listing: the file that lists dropped pairs, or None.
    """

    def __init__(self, output: Output, listing: str | None) -> None:
        self.output = output
        self.listing = listing
        self.read = 0
        self.written: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.examples: dict[str, list[list[str]]] = {}

    def drop(self, reason: str, place: str, source: str, target: str) -> None:
        """Keep a few examples per reason, and list the pair if asked."""
        some = self.examples.setdefault(reason, [])
        if len(some) < EXAMPLES:
            some.append([place, source[:200], target[:200]])
        if self.listing is not None:
            self.output.write(self.listing, f"{reason}\t{place}\t{source}\t{target}")

    def add(self, pairs: int, filtered: FilteredChunk) -> None:
        """Add the result of a chunk of `pairs` pairs."""
        self.read += pairs
        self.dropped += filtered.dropped
        for example in filtered.examples:
            self.drop(*example)

    def write(self, split: str, languages: Sequence[str], pair: tuple[str, str]) -> None:
        """Write both sides of a kept pair."""
        self.written[split] += 1
        for lang, text in zip(languages, pair, strict=True):
            self.output.write(f"{split}.{'-'.join(languages)}.{lang}", text)

    def facts(self) -> dict[str, object]:
        """Counts and examples for the manifest."""
        return {
            "read": self.read,
            "kept": self.read - self.dropped.total(),
            "splits": dict(self.written),
            "dropped": {
                reason: {"pairs": self.dropped[reason], "why": why, "examples": self.examples.get(reason, [])}
                for reason, why in REASONS.items()
                if self.dropped[reason]
            },
        }

    def table(self) -> str:
        """Counts for the user."""
        lines = [f"  read {self.read}, kept {self.read - self.dropped.total()}"]
        lines += [f"  dropped {self.dropped[reason]}: {why}" for reason, why in REASONS.items() if self.dropped[reason]]
        return "\n".join(lines)


def read_inputs(options: Options, sources: Sources) -> Iterator[Chunk]:
    """All inputs as one stream, in the order of READERS.

    Raises:
        UserError: no input is given, or one cannot be used.
    """
    inputs = [(form, files) for form in READERS for files in getattr(options, form)]
    if not inputs:
        raise UserError(f"give at least one of {', '.join('--' + form for form in READERS)}")
    for file in chain(options.exclude, *(files for _, files in inputs)):
        sources.file(file)
    for form, files in inputs:
        pairs = READERS[form][1](files, tuple(options.languages), tuple(options.columns))
        yield from chunks(files[0].name, pairs)


def rules_of(options: Options) -> Rules:
    """The rules that the options ask for."""
    named = dict(option.split("=", 1) for option in options.scripts if "=" in option)
    if len(named) < len(options.scripts):
        raise UserError(f"--scripts {' '.join(options.scripts)}: write LANG=SCRIPT, with + between several scripts")
    named = {lang: names.replace("+", " ") for lang, names in named.items()}
    scripts = [scripts_of(lang, named) for lang in options.languages]
    for names in scripts:
        letters_in(names)  # refuses unknown scripts before any work
    lines = chain.from_iterable(numbered_lines(path) for path in options.exclude)
    held_out = frozenset(key_of(fold_text(text)) for text in (clean_text(line) for _, line in lines) if text)
    return Rules(
        scripts=(scripts[0], scripts[1]),
        min_words=options.min_words,
        max_words=options.max_words,
        max_word=options.max_word,
        max_ratio=options.max_ratio,
        min_script=options.min_script,
        held_out=held_out,
    )


def clean_corpus(options: Options, all_chunks: Iterator[Chunk], report: CleaningReport, scratch: Path) -> None:
    """Clean, filter and deduplicate a corpus for training."""
    filter_chunk = filter_with(rules_of(options), report.listing is not None)
    source, target = (scratch / lang for lang in ("source", "target"))
    with (
        closing(Duplicates(scratch)) as duplicates,
        source.open("wb") as left,
        target.open("wb") as right,
        tqdm(desc="pairs", unit="pair", disable=None) as progress,
    ):
        for filtered in in_order(filter_chunk, all_chunks, options.workers):
            pairs = len(filtered.source) + filtered.dropped.total()
            report.add(pairs, filtered)
            left.writelines(line.encode() for line in filtered.source)
            right.writelines(line.encode() for line in filtered.target)
            duplicates.add(filtered.keys)
            progress.update(pairs)
        left.close()
        right.close()
        with source.open("rb") as first, target.open("rb") as second:
            write_unrepeated(duplicates, first, second, options, report)


def write_unrepeated(
    duplicates: Duplicates, source: BinaryIO, target: BinaryIO, options: Options, report: CleaningReport
) -> None:
    """Write the pairs that did not occur before."""
    kept = 0
    for mask in duplicates.masks():
        for repeated in mask.tolist():
            pair = source.readline().decode().removesuffix("\n"), target.readline().decode().removesuffix("\n")
            if repeated:
                report.dropped[DUPLICATE] += 1
                if report.listing is not None or report.dropped[DUPLICATE] <= EXAMPLES:
                    report.drop(DUPLICATE, "after cleaning", *pair)
                continue
            kept += 1
            held_out = options.valid_every and kept % options.valid_every == 0
            report.write("valid" if held_out else options.split, options.languages, pair)


def copy_corpus(options: Options, all_chunks: Iterator[Chunk], report: CleaningReport) -> None:
    """Write an evaluation set: every pair, unchanged but for white space.

    Raises:
        UserError: a side is empty.
    """
    for chunk in all_chunks:
        for number, pair in enumerate(chunk.pairs, chunk.first):
            place = f"{chunk.name}, line {number}"
            sides = [one_line(decode(side, place)) for side in pair]
            if not all(sides):
                raise UserError(f"{place}: a side is empty, and evaluation sets leave nothing out; fix the file")
            report.write(options.split, options.languages, (sides[0], sides[1]))
        report.read += len(chunk.pairs)


def make(options: Options) -> str:
    """Write everything; returns a summary for the user."""
    check_options(options)
    name = f"{options.split}.{'-'.join(options.languages)}"
    sources = Sources(options.checksums)
    with Output(options.output, name, manifest=f"{name}.json") as output:
        report = CleaningReport(output, f"{name}.dropped.tsv" if options.list_dropped else None)
        all_chunks = read_inputs(options, sources)
        if options.split == TRAIN:
            with tempfile.TemporaryDirectory(dir=options.scratch or options.output, prefix=".parallel-") as scratch:
                clean_corpus(options, all_chunks, report, Path(scratch))
        else:
            copy_corpus(options, all_chunks, report)
        if report.read == report.dropped.total():
            dropped = ", ".join(f"{count} {reason}" for reason, count in report.dropped.items())
            raise UserError(
                f"{name}: none of {report.read} pairs is left ({dropped}); check the languages and the rules"
            )
        rules = {key: getattr(options, key) for key in RULES}
        facts = {"script": f"preprocess/{SCRIPT}", "sources": sources.described()}
        output.finish(facts | ({"rules": rules} if options.split == TRAIN else {}) | report.facts(), sources.paths)
    return f"{options.output}/{name}\n{report.table()}"


def check_options(options: Options) -> None:
    """Check options that depend on each other.

    Raises:
        UserError: they contradict each other, or are out of range.
    """
    if options.languages[0] == options.languages[1]:
        raise UserError(f"--languages {' '.join(options.languages)}: name two different languages")
    if min(options.columns) < 1:
        raise UserError(f"--columns {' '.join(map(str, options.columns))}: columns count from 1")
    if options.workers < 1:
        raise UserError(f"--workers {options.workers}: give at least 1")
    if options.split != TRAIN and (options.exclude or options.valid_every or options.list_dropped):
        raise UserError("--exclude, --valid-every and --list-dropped need --split train; other splits are kept whole")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(
        prog=SCRIPT, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--languages", nargs=2, required=True, metavar=("SRC", "TGT"), help="language codes, such as en de")
    add("--output", type=Path, required=True, metavar="DIR", help="directory to write")
    add("--split", choices=(TRAIN, "valid", "test"), default=TRAIN, help="the split to write (default: train)")
    add("--checksums", type=Path, metavar="FILE", help="expected hashes of the sources, in the format of sha256sum")
    for form, (count, _) in READERS.items():
        names = ("SRC", "TGT") if count == 2 else "FILE"
        what = f"{INPUTS[form]}; may be repeated"
        add(f"--{form}", type=Path, nargs=count, action="append", default=[], metavar=names, help=what)
    what = "columns of --tsv, counted from 1 (default: 1 2)"
    add("--columns", type=int, nargs=2, default=(1, 2), metavar=("SRC", "TGT"), help=what)
    defaults = Rules(("", ""))
    for name, (kind, what) in RULES.items():
        default = getattr(defaults, name)
        add(f"--{name.replace('_', '-')}", type=kind, default=default, metavar="N", help=f"{what} (default: {default})")
    what = "Unicode scripts of a language, joined by +, such as sr=Latin+Cyrillic (default: the usual ones)"
    add("--scripts", nargs="+", default=[], metavar="LANG=SCRIPT", help=what)
    what = "text files whose sentences must not be trained on, such as test sets"
    add("--exclude", type=Path, nargs="+", default=[], metavar="FILE", help=what)
    add("--valid-every", type=int, default=0, metavar="K", help="move every Kth pair to valid (default: 0, none)")
    add("--list-dropped", action="store_true", help="write every dropped pair to SPLIT.SRC-TGT.dropped.tsv")
    add("--workers", type=int, default=cores(), metavar="N", help=f"processes (default: all cores, {cores()})")
    add("--scratch", type=Path, metavar="DIR", help="directory for temporary files (default: --output)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = build_parser().parse_args(argv)
    return run_main(SCRIPT, lambda: print(make(options)))


if __name__ == "__main__":
    sys.exit(main())
