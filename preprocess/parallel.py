#!/usr/bin/env python3
"""Clean parallel text of one language pair: any OPUS or Moses files, WMT's tsv and SGML, several of them as one corpus.

For mCLIP: the WMT and OPUS corpora of en-cs, en-de, en-es, en-ja, en-ru and en-zh, from the OPUS web site (Tiedemann,
2012) and the pages of WMT's shared tasks; newstest sets for valid and test.

Training text is mended (encoding, entities, markup, control characters, white space; Unicode NFC), filtered by length,
ratio and script, and each pair is kept once, of all inputs together; other splits are kept line by line as they are.
Writes SPLIT.SRC-TGT.SRC and SPLIT.SRC-TGT.TGT for encode.py and binarise.py, and SPLIT.SRC-TGT.json: sources with
hashes, counts, what was dropped and why, with examples. Memory does not grow with the corpus; all cores work.
"""

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from corpora.command import Options, guarded
from corpora.duplicates import Duplicates
from corpora.files import decode, numbered_lines
from corpora.filters import DUPLICATE, EXAMPLES, REASONS, Chunk, Judged, Rules, judge_with, key_of
from corpora.output import Output
from corpora.parallel import READERS, chunks
from corpora.pool import cores, in_order
from corpora.scripts import letters_in, scripts_of
from corpora.sources import Sources
from corpora.text import bare, mend, one_line
from tqdm import tqdm

from mclip_fairseq.storage.errors import UserError

SCRIPT = "parallel.py"
TRAIN = "train"
RULES = ("min_words", "max_words", "max_word", "max_ratio", "min_script")


class Report:
    """What was read, written and dropped.

    Args:
        output: where pairs go.
        listing: the file that dropped pairs go to, or None.
    """

    def __init__(self, output: Output, listing: str | None) -> None:
        self.output = output
        self.listing = listing
        self.read = 0
        self.written: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.examples: dict[str, list[list[str]]] = {}

    def drop(self, reason: str, place: str, source: str, target: str) -> None:
        """Remember an example, of which there are only a few, and list it."""
        some = self.examples.setdefault(reason, [])
        if len(some) < EXAMPLES:
            some.append([place, source[:200], target[:200]])
        if self.listing is not None:
            self.output.write(self.listing, f"{reason}\t{place}\t{source}\t{target}")

    def add(self, pairs: int, judged: Judged) -> None:
        """Take in what became of a chunk."""
        self.read += pairs
        self.dropped += judged.dropped
        for example in judged.examples:
            self.drop(*example)

    def write(self, split: str, languages: Sequence[str], pair: tuple[str, str]) -> None:
        """Write both sides of a pair that is kept."""
        self.written[split] += 1
        for lang, text in zip(languages, pair, strict=True):
            self.output.write(f"{split}.{'-'.join(languages)}.{lang}", text)

    def facts(self) -> dict[str, object]:
        """For the manifest."""
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
        """For people."""
        lines = [f"  read {self.read}, kept {self.read - self.dropped.total()}"]
        lines += [f"  dropped {self.dropped[reason]}: {why}" for reason, why in REASONS.items() if self.dropped[reason]]
        return "\n".join(lines)


def read_inputs(options: Options, sources: Sources) -> Iterator[Chunk]:
    """All inputs as one stream, in the order of READERS.

    Raises:
        UserError: there is none, or one cannot be used.
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
    given = dict(option.split("=", 1) for option in options.scripts if "=" in option)
    if len(given) < len(options.scripts):
        raise UserError(f"--scripts {' '.join(options.scripts)}: write LANG=SCRIPT, with + between several scripts")
    given = {lang: names.replace("+", " ") for lang, names in given.items()}
    scripts = [scripts_of(lang, given) for lang in options.languages]
    for names in scripts:
        letters_in(names)
    lines = chain.from_iterable(numbered_lines(path) for path in options.exclude)
    held_out = frozenset(key_of(bare(text)) for text in (mend(line) for _, line in lines) if text)
    return Rules(
        scripts=(scripts[0], scripts[1]),
        min_words=options.min_words,
        max_words=options.max_words,
        max_word=options.max_word,
        max_ratio=options.max_ratio,
        min_script=options.min_script,
        held_out=held_out,
    )


def clean(options: Options, all_chunks: Iterator[Chunk], report: Report, scratch: Path) -> None:
    """Mend, filter and deduplicate a corpus for training."""
    judge = judge_with(rules_of(options), report.listing is not None)
    source, target = (scratch / lang for lang in ("source", "target"))
    with (
        closing(Duplicates(scratch)) as duplicates,
        source.open("wb") as left,
        target.open("wb") as right,
        tqdm(desc="pairs", unit="pair", disable=None) as progress,
    ):
        for judged in in_order(judge, all_chunks, options.workers):
            pairs = len(judged.source) + judged.dropped.total()
            report.add(pairs, judged)
            left.writelines(line.encode() for line in judged.source)
            right.writelines(line.encode() for line in judged.target)
            duplicates.add(judged.keys)
            progress.update(pairs)
        left.close()
        right.close()
        with source.open("rb") as first, target.open("rb") as second:
            write_first(duplicates, first, second, options, report)


def write_first(duplicates: Duplicates, source: BinaryIO, target: BinaryIO, options: Options, report: Report) -> None:
    """Write the pairs that did not come before."""
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
            held = options.valid_every and kept % options.valid_every == 0
            report.write("valid" if held else options.split, options.languages, pair)


def copy(options: Options, all_chunks: Iterator[Chunk], report: Report) -> None:
    """Write a set that is evaluated on: every pair, on one line each, and nothing else done to it.

    Raises:
        UserError: a side is empty.
    """
    for chunk in all_chunks:
        for number, pair in enumerate(chunk.pairs, chunk.first):
            place = f"{chunk.name}, line {number}"
            sides = [one_line(decode(side, place)) for side in pair]
            if not all(sides):
                raise UserError(f"{place}: a side is empty; an evaluation leaves nothing out, so mend the file")
            report.write(options.split, options.languages, (sides[0], sides[1]))
        report.read += len(chunk.pairs)


def make(options: Options) -> str:
    """Run the command; returns what to tell the user."""
    check(options)
    name = f"{options.split}.{'-'.join(options.languages)}"
    sources = Sources(options.checksums)
    with Output(options.output, name, manifest=f"{name}.json") as output:
        report = Report(output, f"{name}.dropped.tsv" if options.list_dropped else None)
        all_chunks = read_inputs(options, sources)
        if options.split == TRAIN:
            with tempfile.TemporaryDirectory(dir=options.scratch or options.output, prefix=".parallel-") as scratch:
                clean(options, all_chunks, report, Path(scratch))
        else:
            copy(options, all_chunks, report)
        if report.read == report.dropped.total():
            raise UserError(f"{name}: no pair is left of {report.read}\n{report.table()}")
        rules = {key: getattr(options, key) for key in RULES}
        facts = {"script": f"preprocess/{SCRIPT}", "sources": sources.described()}
        output.finish(facts | ({"rules": rules} if options.split == TRAIN else {}) | report.facts(), sources.paths)
    return f"{options.output}/{name}\n{report.table()}"


def check(options: Options) -> None:
    """Refuse options that cannot be meant.

    Raises:
        UserError: in one sentence.
    """
    if options.languages[0] == options.languages[1]:
        raise UserError(f"--languages {' '.join(options.languages)}: name two languages")
    if min(options.columns) < 1:
        raise UserError(f"--columns {' '.join(map(str, options.columns))}: columns count from 1")
    if options.workers < 1:
        raise UserError(f"--workers {options.workers}: give at least 1")
    if options.split != TRAIN and (options.exclude or options.valid_every or options.list_dropped):
        raise UserError("--exclude, --valid-every and --list-dropped go with --split train: others are kept whole")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=SCRIPT, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--languages", nargs=2, required=True, metavar=("SRC", "TGT"), help="codes, such as en de")
    add("--output", type=Path, required=True, metavar="DIR", help="directory to write")
    add("--split", choices=(TRAIN, "valid", "test"), default=TRAIN, help="which split this is (train)")
    add("--checksums", type=Path, metavar="FILE", help="hashes of the sources, as sha256sum writes them")
    for form, (count, _) in READERS.items():
        names = ("SRC", "TGT") if count == 2 else "FILE"
        what = {"moses": "two files of lines", "zip": "OPUS's archive of such", "tsv": "a table", "sgm": "WMT's SGML"}
        add(f"--{form}", type=Path, nargs=count, action="append", default=[], metavar=names, help=what[form])
    add("--columns", type=int, nargs=2, default=(1, 2), metavar=("SRC", "TGT"), help="columns of --tsv, from 1 (1 2)")
    rules = Rules(("", ""))
    add("--min-words", type=int, default=rules.min_words, metavar="N", help=f"of a side ({rules.min_words})")
    add("--max-words", type=int, default=rules.max_words, metavar="N", help=f"of a side ({rules.max_words})")
    add("--max-word", type=int, default=rules.max_word, metavar="N", help=f"characters of a word ({rules.max_word})")
    add(
        "--max-ratio", type=float, default=rules.max_ratio, metavar="X", help="words of the longer side per shorter (3)"
    )
    add("--min-script", type=float, default=rules.min_script, metavar="X", help="share of letters in the script (0.5)")
    add("--scripts", nargs="+", default=[], metavar="LANG=SCRIPT", help="Unicode scripts of a language, joined by +")
    add("--exclude", type=Path, nargs="+", default=[], metavar="FILE", help="sentences that may not be trained on")
    add("--valid-every", type=int, default=0, metavar="K", help="put every Kth pair into valid instead (0: none)")
    add("--list-dropped", action="store_true", help="write every dropped pair into SPLIT.SRC-TGT.dropped.tsv")
    add("--workers", type=int, default=cores(), metavar="N", help=f"processes (all cores: {cores()})")
    add("--scratch", type=Path, metavar="DIR", help="directory for temporary files (the output)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = build_parser().parse_args(argv)
    return guarded(SCRIPT, lambda: make(options))


if __name__ == "__main__":
    sys.exit(main())
